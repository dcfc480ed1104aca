"""HSTU (arXiv 2402.17152): pointwise attention, and a gate where others have a feed-forward layer.

The paper also gives the attention a bias by time passed; the model sees no times here, so the bias
is by distance alone.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from blossom_jax import layers
from blossom_jax.attention import Attention, qkv_projection, segment_mask, split_heads
from blossom_jax.config import ModelConfig


class SiluAttention(Attention):
    """Weighs values by `silu(q k + bias of the distance) / max_length`, one pair at a time."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Initialises the parameters.

        Args:
          config: Sizes and switches.
          rngs: Source of the initial weights.
        """
        self.config = config
        self.qkv = qkv_projection(config, rngs)
        # Of distances -(max_length - 1) ... max_length - 1; a causal model reads the second half.
        self.distance_bias = nnx.Param(
            layers.WEIGHT_INIT(rngs.params(), (2 * config.max_length - 1,), jnp.float32)
        )
        self.out = layers.linear(
            config.hidden_size, config.hidden_size, config, use_bias=False, rngs=rngs
        )

    def mix(self, x, qkv, positions, *, packed=True):
        """Attends inside each sequence; packed rows cost nothing but their zeros."""
        del packed
        q, k, v = split_heads(qkv, positions, self.config)
        groups = self.config.num_heads // self.config.num_kv_heads
        k, v = (jnp.repeat(y, groups, axis=2) for y in (k, v))
        with jax.default_matmul_precision(self.config.precision.name.lower()):
            logits = jnp.einsum("bihd,bjhd->bhij", q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.silu(logits + self._bias(positions.shape[1]))
            mask = segment_mask(positions, self.config.causal) & (positions >= 0)[:, None, :, None]
            weights = jnp.where(mask, weights / self.config.max_length, 0).astype(x.dtype)
            return jnp.einsum("bhij,bjhd->bihd", weights, v).reshape(x.shape)

    def _bias(self, length: int) -> Float[Array, "L L"]:
        """Returns the bias of each pair; those of pairs too far apart are masked anyway."""
        reach = self.config.max_length - 1
        distance = jnp.arange(length)[:, None] - jnp.arange(length)
        return self.distance_bias[...][jnp.clip(distance, -reach, reach) + reach]


class HSTUBlock(nnx.Module):
    """HSTU's block around any attention: `x + f(norm(attention) * u)`, all inputs through SiLU."""

    normalizes = "output"  # of the stack

    def __init__(self, config: ModelConfig, attention: Attention, *, rngs: nnx.Rngs):
        """Initialises what is around the attention.

        Args:
          config: Sizes and switches.
          attention: What mixes the tokens; its output map is the block's.
          rngs: Source of the initial weights.
        """
        hidden = config.hidden_size
        self.config = config
        self.attention = attention
        self.input_norm = layers.LayerNorm(config, rngs=rngs)
        self.gate = layers.linear(hidden, hidden, config, use_bias=False, rngs=rngs)
        self.attention_norm = layers.LayerNorm(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L M"],
        positions: Int[Array, "B L"],
        *,
        dropout_key: PRNGKeyArray | None = None,
        packed: bool = True,
    ) -> Float[Array, "B L M"]:
        """Mixes the tokens of each sequence; arguments as of `blocks.PostNormBlock`."""
        y = self.input_norm(x)
        qkv, u = nnx.silu(self.attention.qkv(y)), nnx.silu(self.gate(y))
        attended = self.attention_norm(self.attention.mix(y, qkv, positions, packed=packed))
        gated = layers.dropout(attended * u, self.config.dropout, dropout_key)
        return x + self.attention.out(gated)
