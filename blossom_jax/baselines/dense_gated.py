"""Full attention in place of the long-term path: what selecting blocks costs, all else equal."""

import functools

from flax import nnx

from blossom_jax import sharding
from blossom_jax.attention import split_heads
from blossom_jax.config import ModelConfig
from blossom_jax.dense_attention import DenseAttention
from blossom_jax.gate import make_gate, path_weights
from pallas_kernels import power_attention
from pallas_kernels.blossom_attention.paths import add_by_gate


class DenseGatedAttention(DenseAttention):
    """Full and short-term attention, weighed by the gate of arXiv 2512.13368."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Initialises the parameters, the gate's after those of dense attention."""
        super().__init__(config, rngs=rngs)
        self.gate = make_gate(config, rngs=rngs)

    def mix(self, x, qkv, positions, *, packed=True):
        """Attends on both paths inside each sequence."""
        q, k, v = split_heads(qkv, positions, self.config)
        long_term = self.attend(q, k, v, positions, packed=packed)
        attend = functools.partial(
            power_attention,
            window=self.config.window,
            max_history=self.config.max_length,
            causal=self.config.causal,
            implementation=self.config.implementation or None,
        )
        short_term = sharding.by_rows(attend)(q, k, v, positions)
        gate = path_weights(self.gate, x, self.config)
        return add_by_gate(gate, long_term, short_term).reshape(x.shape)
