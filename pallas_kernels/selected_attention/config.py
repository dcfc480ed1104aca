"""How the kernels of selected blocks cut up their work."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.triton_tools import warps_for


@dataclasses.dataclass(frozen=True)
class BlockTiles:
    """Tiles of one kernel.

    Attributes:
      rows: query heads that a program holds at a time.
      num_warps: warps of a program.
      num_stages: depth of the pipeline.
    """

    rows: int
    num_warps: int
    num_stages: int = 1

    def __post_init__(self):
        """Refuses what a program cannot be."""
        if self.rows & (self.rows - 1) or not 16 <= self.rows <= 1024:
            raise ValueError(f"rows={self.rows} must be a power of two from 16 to 1024")

    @classmethod
    def forward(cls, keys: int, head_size: int, dtype: jax.typing.DTypeLike) -> "BlockTiles":
        """Chooses tiles by shape for the forward kernel.

        Args:
          keys: of a block, padded.
          head_size: D, padded.
          dtype: of the arrays.
        """
        per_thread = 32 if dtype == jnp.bfloat16 else 16
        return cls(128, warps_for(128 * max(keys, head_size), per_thread, least=2), 2)

    @classmethod
    def backward(cls, keys: int, head_size: int, dtype: jax.typing.DTypeLike) -> "BlockTiles":
        """Chooses tiles by shape for the backward kernel, likewise."""
        per_thread = 32 if dtype == jnp.bfloat16 else 16
        return cls(64, warps_for(64 * max(keys, head_size), per_thread, least=1))
