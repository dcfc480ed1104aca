"""HSTU's pointwise attention (arXiv 2402.17152); its block is among `blocks.py`.

The paper also gives the attention a bias by time passed; the model sees no times here, so the bias
is by distance alone.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from blossom_jax import layers
from blossom_jax.attention import Attention, split_heads
from blossom_jax.dense_attention import segment_mask


class SiluAttention(Attention):
    """Weighs values by `silu(q k + bias of the distance) / max_length`, one pair at a time."""

    def add_parts(self, rngs):
        """Adds the bias of each distance."""
        # Of distances -(max_length - 1) ... max_length - 1; a causal model reads the second half.
        self.distance_bias = nnx.Param(
            layers.WEIGHT_INIT(rngs.params(), (2 * self.config.max_length - 1,), jnp.float32)
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
