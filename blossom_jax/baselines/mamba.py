"""Mamba4Rec's selective state space (arXiv 2403.03900, 2312.00752)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from blossom_jax import layers
from blossom_jax.config import ModelConfig

EXPANSION = 2  # channels of the state space over the hidden size
STATE_SIZE = 32  # numbers that each channel remembers
CONVOLUTION = 4  # tokens that the convolution before it reads
STEP_RANGE = (1e-3, 0.1)  # of the initial step sizes
CHUNK = 16  # tokens whose states the backward pass computes anew at once


class Mamba(nnx.Module):
    """A linear recurrence whose step, input and output depend on the token."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Initialises the parameters.

        Args:
          config: Sizes and switches; only the hidden size has a part here.
          rngs: Source of the initial weights.
        """
        hidden = config.hidden_size
        channels, rank = EXPANSION * hidden, -(-hidden // 16)
        self.config = config
        self.input = layers.linear(hidden, 2 * channels, config, use_bias=False, rngs=rngs)
        self.convolution = nnx.Param(
            jax.random.uniform(rngs.params(), (CONVOLUTION, channels), minval=-0.5, maxval=0.5)
        )
        self.convolution_bias = nnx.Param(jnp.zeros(channels))
        self.selection = layers.linear(
            channels, rank + 2 * STATE_SIZE, config, use_bias=False, rngs=rngs
        )
        self.step = layers.linear(rank, channels, config, rngs=rngs)
        low, high = map(math.log, STEP_RANGE)
        step = jnp.exp(jax.random.uniform(rngs.params(), (channels,), minval=low, maxval=high))
        self.step.bias.set_value(step + jnp.log(-jnp.expm1(-step)))  # softplus of this is the step
        # One dimension, as the optimizer lets only matrices decay, and these must not.
        log_decay = jnp.log(jnp.arange(1.0, STATE_SIZE + 1))
        self.log_decay = nnx.Param(jnp.tile(log_decay, channels))
        self.skip = nnx.Param(jnp.ones(channels))
        self.out = layers.linear(channels, hidden, config, use_bias=False, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L M"], positions: Int[Array, "B L"], *, packed: bool = True
    ) -> Float[Array, "B L M"]:
        """Reads each sequence from its first token on.

        Args:
          x: Activations.
          positions: int32, position of each token inside its own sequence, -1 at padding.
          packed: Without effect.

        Returns:
          Activations in the config's dtype, zero at padding.
        """
        del packed
        u, z = jnp.split(self.input(x), 2, axis=-1)  # [B, L, E]
        u = nnx.silu(self._convolve(u, positions))
        rank = self.step.in_features
        step, b, c = jnp.split(self.selection(u), [rank, rank + STATE_SIZE], axis=-1)
        step = jax.nn.softplus(self.step(step).astype(jnp.float32))
        rate = -jnp.exp(self.log_decay[...].reshape(-1, STATE_SIZE))
        u, b, c = (w.astype(jnp.float32) for w in (u, b, c))
        y = selective_scan(u, step, b, c, rate, positions)
        y = (y + self.skip[...] * u).astype(x.dtype) * nnx.silu(z)
        return self.out(jnp.where((positions >= 0)[..., None], y, 0))

    def _convolve(self, u, positions):
        """Sums each channel over the last tokens of the sequence."""
        kernel = self.convolution[...].astype(u.dtype)
        total = kernel[0] * u + self.convolution_bias[...].astype(u.dtype)
        for back in range(1, CONVOLUTION):
            earlier = jnp.pad(u, ((0, 0), (back, 0), (0, 0)))[:, : u.shape[1]]
            total += kernel[back] * jnp.where((positions >= back)[..., None], earlier, 0)
        return total


def selective_scan(
    u: Float[Array, "B L E"],
    step: Float[Array, "B L E"],
    b: Float[Array, "B L N"],
    c: Float[Array, "B L N"],
    rate: Float[Array, "E N"],
    positions: Int[Array, "B L"],
) -> Float[Array, "B L E"]:
    """Computes `h = exp(step rate) h + step b u` and `c h` along each sequence (arXiv 2312.00752).

    Of the states only every `CHUNK`-th is kept for the backward pass. A chunk is unrolled: with
    gradients that took 40% of the time of a loop on two CPU cores, and 21% on an H200.

    Args:
      u: Input of each channel.
      step: Positive step sizes.
      b: How the input enters the state.
      c: How the state is read.
      rate: Negative rates of decay.
      positions: A sequence begins where it is 0, with a state of zero.

    Returns:
      What is read, any value at padding.
    """
    rows, length = positions.shape

    def by_chunks(x):  # [chunks, CHUNK, B, ...]
        x = jnp.pad(x, ((0, 0), (0, -length % CHUNK), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x, 1, 0).reshape(-1, CHUNK, rows, *x.shape[2:])

    def read_token(state, token):
        u, step, b, c, position = token
        goes_on = (position > 0)[:, None, None]
        keeps = jnp.where(goes_on, jnp.exp(step[..., None] * rate), 0)  # [B, E, N]
        state = keeps * state + (step * u)[..., None] * b[:, None]
        return state, jnp.einsum("ben,bn->be", state, c)

    @jax.checkpoint
    def read_chunk(state, tokens):
        return jax.lax.scan(read_token, state, tokens, unroll=True)

    start = jnp.zeros((rows, *rate.shape))
    _, read = jax.lax.scan(read_chunk, start, tuple(map(by_chunks, (u, step, b, c, positions))))
    return jnp.moveaxis(read.reshape(-1, *read.shape[2:])[:length], 0, 1)
