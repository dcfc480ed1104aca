"""The gate that weighs the long-term and the short-term path (arXiv 2512.13368)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from blossom_jax import layers
from blossom_jax.config import ModelConfig

_CONSTANT = {"sum": 1.0, "average": 0.5}


def make_gate(config: ModelConfig, *, rngs: nnx.Rngs) -> nnx.Linear | None:
    """Builds the gate's layer, from activations to two logits a head; None where it is constant."""
    if config.gate in _CONSTANT:
        return None
    gate = layers.linear(config.hidden_size, config.num_heads * 2, config, rngs=rngs)
    bias = jnp.array([config.gate_bias_ltis, config.gate_bias_stis], jnp.float32)
    gate.bias.set_value(jnp.tile(bias, config.num_heads))
    return gate


def path_weights(
    gate: nnx.Linear | None, x: Float[Array, "B L M"], config: ModelConfig
) -> Float[Array, "B L H 2"]:
    """Returns the weights of the (long-term, short-term) path in each head, in f32.

    Args:
      gate: From `make_gate`.
      x: Activations.
      config: That it was made with.
    """
    shape = (*x.shape[:2], config.num_heads, 2)
    if gate is None:
        return jnp.full(shape, _CONSTANT[config.gate])
    return jax.nn.sigmoid(gate(x).astype(jnp.float32)).reshape(shape)
