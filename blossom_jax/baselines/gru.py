"""GRU4Rec's recurrence (arXiv 1511.06939)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from blossom_jax.config import ModelConfig


class GRU(nnx.Module):
    """A gated recurrent unit that begins anew with every sequence."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        """Initialises the parameters.

        Args:
          config: Sizes and switches; only the hidden size has a part here.
          rngs: Source of the initial weights.
        """
        self.config = config
        hidden, dtype = config.hidden_size, config.compute_dtype
        self.cell = nnx.GRUCell(hidden, hidden, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L M"], positions: Int[Array, "B L"], *, packed: bool = True
    ) -> Float[Array, "B L M"]:
        """Reads each sequence from its first token on, one after another.

        Args:
          x: Activations.
          positions: int32, position of each token inside its own sequence, -1 at padding.
          packed: Without effect.

        Returns:
          The states, zero at padding.
        """
        del packed

        def read(state, token):
            x, position = token
            state, _ = self.cell(jnp.where(position[:, None] > 0, state, 0), x)
            state = jnp.where(position[:, None] >= 0, state, 0)
            return state, state

        with jax.default_matmul_precision(self.config.precision.name.lower()):
            _, states = jax.lax.scan(read, jnp.zeros_like(x[:, 0]), (x.swapaxes(0, 1), positions.T))
        return states.swapaxes(0, 1)
