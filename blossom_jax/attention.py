"""Attention modules: what all have in common, and BlossomRec's two sparse paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from blossom_jax import layers, selectors, sharding
from blossom_jax.compression import KeyCompressor, mean_keys
from blossom_jax.config import SCORED, SUMMARIES, ModelConfig
from blossom_jax.gate import make_gate, path_weights
from blossom_jax.summary_attention import summary_attention
from pallas_kernels import block_selection, blossom_attention, power_attention, selected_attention
from pallas_kernels.blossom_attention.paths import add_by_gate


def rotate(x: Float[Array, "B L heads D"], positions: Int[Array, "B L"], theta: float) -> Array:
    """Turns interleaved pairs by position-dependent angles (RoPE, arXiv 2104.09864), in f32.

    Args:
      x: Queries or keys.
      positions: Position of each token inside its own sequence.
      theta: Base of the frequencies: pair n of P turns by theta**(-n / P) a position.

    Returns:
      The rotated x, in its own dtype.
    """
    d = x.shape[-1]
    frequency = jnp.asarray(theta ** (-np.arange(0, d, 2) / d), jnp.float32)
    angle = positions[:, :, None, None, None] * frequency[:, None]  # [B, L, 1, D/2, 1]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], d // 2, 2)
    across = pairs[..., ::-1] * jnp.array([-1.0, 1.0], jnp.float32)  # a quarter turn further
    turned = pairs * jnp.cos(angle) + across * jnp.sin(angle)
    return turned.reshape(x.shape).astype(x.dtype)


class Attention(nnx.Module):
    """Projects tokens to queries, keys and values, mixes the values, and projects back.

    What attends defines `mix`, and `add_parts` if it has parameters of its own. The maps `qkv` and
    `out` are apart so that a block may treat queries, keys and values in its own way before, as
    HSTU's does.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Initialises the parameters.

        Args:
          config: Sizes and switches.
          rngs: Source of the initial weights.
        """
        hidden = config.hidden_size
        self.config = config
        self.qkv = qkv_projection(config, rngs)
        self.add_parts(rngs)  # before `out`: a seed's weights depend on the order
        self.out = layers.linear(hidden, hidden, config, use_bias=False, rngs=rngs)

    def add_parts(self, rngs: nnx.Rngs) -> None:
        """Adds what there is besides the two maps; nothing by default.

        Args:
          rngs: Source of the initial weights.
        """

    def mix(
        self,
        x: Float[Array, "B L M"],
        qkv: Float[Array, "B L heads_D"],
        positions: Int[Array, "B L"],
        *,
        packed: bool = True,
    ) -> Float[Array, "B L M"]:
        """Attends inside each sequence.

        Args:
          x: Activations; a gate may read them.
          qkv: Queries, keys and values of all heads, before their rotation.
          positions: int32, position of each token inside its own sequence, -1 at padding.
          packed: Whether a row may hold several sequences. False promises one, from the row's
            first token on, from which only dense attention gains: cuDNN can serve it.

        Returns:
          The attended values in the config's dtype, zero at padding.
        """
        raise NotImplementedError

    def __call__(
        self, x: Float[Array, "B L M"], positions: Int[Array, "B L"], *, packed: bool = True
    ) -> Float[Array, "B L M"]:
        """Projects, attends inside each sequence as `mix` does, and projects back."""
        return self.out(self.mix(x, self.qkv(x), positions, packed=packed))


class BlossomAttention(Attention):
    """Long-term and short-term sparse attention fused by a gate (arXiv 2512.13368), or one path.

    `config.attention` chooses: "blossom" for both and the gate; "ltis" or "stis" for that path
    alone, which has no gate (and, for "stis", no compressor). There is a compressor only where
    `config.selector` names it, and a gate's layer only where `config.gate` is learned.
    """

    def add_parts(self, rngs):
        """Adds the gate and the compressor."""
        if self.config.attention == "blossom":
            self.gate = make_gate(self.config, rngs=rngs)
        if self.config.attention != "stis" and self.config.selector == "compressor":
            self.compressor = KeyCompressor(self.config, rngs=rngs)

    def mix(self, x, qkv, positions, *, packed=True):
        """Attends inside each sequence; packed rows cost these paths nothing."""
        del packed
        q, k, v = split_heads(qkv, positions, self.config)
        if self.config.attention == "blossom":
            attended = self._both_paths(q, k, v, self.gates(x), positions)
        elif self.config.attention == "ltis":
            attended = self._long_term(q, k, v, positions)
        else:
            attended = self._short_term(q, k, v, positions)
        return attended.reshape(x.shape)

    def decide(
        self, x: Float[Array, "B L M"], positions: Int[Array, "B L"]
    ) -> dict[str, Float[Array, "B L H 2"] | Int[Array, "B L G N"]]:
        """Returns what is decided for each token on the way to the result of a call.

        Args:
          x: Activations.
          positions: As in the call.

        Returns:
          {"gates": weights of the (long-term, short-term) path in each head, "slots": the blocks
          that are selected, as `block_selection` numbers them}; of a single path, its own alone,
          and no slots where averages take the place of blocks.
        """
        decisions = {}
        if self.config.attention == "blossom":
            decisions["gates"] = self.gates(x)
        if self.config.attention != "stis" and self.config.selector not in SUMMARIES:
            q, k, _ = split_heads(self.qkv(x), positions, self.config)
            decisions["slots"], _ = self._select(q, k, positions)
        return decisions

    def gates(self, x: Float[Array, "B L M"]) -> Float[Array, "B L H 2"]:
        """Returns the weights of the (long-term, short-term) path in each head, in f32."""
        return path_weights(self.gate, x, self.config)

    def _both_paths(self, q, k, v, gate, positions):
        if self.config.selector not in SCORED:  # the fused op scores blocks itself
            long_term = self._long_term(q, k, v, positions)
            short_term = self._short_term(q, k, v, positions)
            return add_by_gate(gate, long_term, short_term)
        attend = functools.partial(
            blossom_attention,
            window=self.config.window,
            mask_own_block=self._mask_own_block,
            selection_gradient=self.config.selection_gradient,
            max_history=self.config.max_length,
            **self._selection_sizes,
            **self._causal_and_implementation,
        )
        summary_keys = self.summary_keys(k, positions)
        return sharding.by_rows(attend)(q, k, v, summary_keys, gate, positions)

    def _long_term(self, q, k, v, positions):
        if number := SUMMARIES.get(self.config.selector):
            summarize = functools.partial(
                summary_attention, num_summaries=number, **self._selection_sizes
            )
            return sharding.by_rows(summarize)(q, k, v, positions)
        attend = functools.partial(
            selected_attention,
            block_size=self.config.selection_block_size,
            selection_gradient=self.config.selection_gradient,
            **self._causal_and_implementation,
        )
        selected = self._select(q, k, positions)
        return sharding.by_rows(attend)(q, k, v, *selected, positions)

    def _select(self, q, k, positions):
        if self.config.selector not in SCORED:
            select = functools.partial(selectors.select_by_rule, config=self.config)
            return sharding.by_rows(select)(q, k, positions)
        select = functools.partial(
            block_selection,
            mask_own_block=self._mask_own_block,
            **self._selection_sizes,
            **self._causal_and_implementation,
        )
        return sharding.by_rows(select)(q, self.summary_keys(k, positions), positions)

    def _short_term(self, q, k, v, positions):
        attend = functools.partial(
            power_attention,
            window=self.config.window,
            max_history=self.config.max_length,
            **self._causal_and_implementation,
        )
        return sharding.by_rows(attend)(q, k, v, positions)

    def summary_keys(
        self, k: Float[Array, "B L G D"], positions: Int[Array, "B L"]
    ) -> Float[Array, "B slots G D"]:
        """Returns what each block is chosen by, see `compression.summary_keys`."""
        if self.config.selector == "mean":
            keys = mean_keys(k, positions, block_size=self.config.selection_block_size)
        else:
            keys = self.compressor(k, positions)
        trains = self.config.selection_gradient != "none"
        return keys if trains else jax.lax.stop_gradient(keys)

    @property
    def _selection_sizes(self) -> dict:
        return {
            "block_size": self.config.selection_block_size,
            "num_selected": self.config.num_selected_blocks,
        }

    @property
    def _mask_own_block(self) -> bool:
        overlap = self.config.selection_block_size != self.config.compress_stride
        return not self.config.causal and overlap

    @property
    def _causal_and_implementation(self) -> dict:
        implementation = self.config.implementation or None
        return {"causal": self.config.causal, "implementation": implementation}


def qkv_projection(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Linear:
    """Builds the map from activations to queries, keys and values of all heads."""
    heads = config.num_heads + 2 * config.num_kv_heads
    width = heads * config.head_size
    return layers.linear(config.hidden_size, width, config, use_bias=False, rngs=rngs)


def split_heads(
    qkv: Float[Array, "B L heads_D"], positions: Int[Array, "B L"], config: ModelConfig
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L G D"], Float[Array, "B L G D"]]:
    """Splits what `qkv_projection` gave into queries, keys and values.

    With `config.positions="rope"`, queries and keys are rotated.
    """
    h, g = config.num_heads, config.num_kv_heads
    heads = qkv.reshape(*qkv.shape[:2], h + 2 * g, config.head_size)
    q, k, v = jnp.split(heads, (h, h + g), axis=2)
    if config.positions == "rope":
        q, k = (rotate(x, positions, config.rope_theta) for x in (q, k))
    return q, k, v
