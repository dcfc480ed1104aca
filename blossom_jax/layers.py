"""The layers around attention: linear maps, layer norm, dropout and feed-forward."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from blossom_jax.config import ModelConfig

WEIGHT_INIT = nnx.initializers.normal(0.02)


def linear(
    in_features: int,
    out_features: int,
    config: ModelConfig,
    *,
    use_bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Builds a linear map with f32 parameters that computes in the config's dtype."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=config.compute_dtype,
        precision=config.precision,
        kernel_init=WEIGHT_INIT,
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """Layer norm computed in f32 and returned in the config's dtype."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(
            config.hidden_size,
            epsilon=config.layer_norm_epsilon,
            dtype=jnp.float32,
            use_fast_variance=False,  # E[x^2] - E[x]^2 loses what so small an epsilon leaves
            rngs=rngs,
        )
        self.out_dtype = config.compute_dtype

    def __call__(self, x: Float[Array, "*n M"]) -> Float[Array, "*n M"]:
        """Normalises the last axis."""
        return super().__call__(x).astype(self.out_dtype)


def exact_gelu(x: Float[Array, "*n M"]) -> Float[Array, "*n M"]:
    """Computes GELU by the error function, in f32 at least, and returns it in x's dtype.

    It is PyTorch's formula, which is 0 below -5.5.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def activated(
    dense: nnx.Linear, activation: Callable[[Array], Array], x: Float[Array, "*n M"]
) -> Float[Array, "*n K"]:
    """Maps, and applies an activation.

    The backward pass keeps the product alone. It adds the bias and forms what the slope is made of
    anew, which is cheaper than to write it.

    Args:
      dense: The map.
      activation: Of what it gives.
      x: Activations.
    """
    keep = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(lambda x: activation(dense(x)), policy=keep)(x)


class FeedForward(nnx.Module):
    """Two linear maps with an activation between them."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        activation: Callable[[Array], Array] = exact_gelu,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.dense_1 = linear(config.hidden_size, config.inner_size, config, rngs=rngs)
        self.dense_2 = linear(config.inner_size, config.hidden_size, config, rngs=rngs)

    def __call__(self, x: Float[Array, "B L M"]) -> Float[Array, "B L M"]:
        """Maps every token alone."""
        return self.dense_2(activated(self.dense_1, self.activation, x))


def dropout(x: Float[Array, "*n M"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*n M"]:
    """Zeroes elements at random and scales the others so that the expectation stays.

    One random byte decides each element, so four come from each word of the generator: a third of
    the time of `jax.random.bernoulli`. The rate is thereby a multiple of 1/256.

    Args:
      x: Activations.
      rate: Probability of a zero, in [0, 1).
      key: The same key gives the same zeros; None drops nothing.
    """
    dropped = min(round(rate * 256), 255)
    if key is None or dropped == 0:
        return x
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)
    four_bytes = jax.lax.bitcast_convert_type(words, jnp.uint8)
    drawn = four_bytes.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return jnp.where(drawn < dropped, 0, x * (256 / (256 - dropped))).astype(x.dtype)


def split_key(key: PRNGKeyArray | None, num: int) -> list[PRNGKeyArray | None]:
    """Splits a dropout key; None, which drops nothing, splits into None."""
    return [None] * num if key is None else list(jax.random.split(key, num))
