"""How the kernels of near keys cut up their work."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.triton_tools import warps_for


@dataclasses.dataclass(frozen=True)
class NearTiles:
    """Tiles of one kernel.

    Attributes:
      rows: query heads that a program works on.
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
    def heuristics(cls, columns: int, head_size: int, dtype: jax.typing.DTypeLike) -> "NearTiles":
        """Chooses tiles by shape: 64 query heads, and the warps that keep them in registers.

        Args:
          columns: keys in the band of a tile.
          head_size: D, padded.
          dtype: of the arrays.
        """
        rows = 64
        per_thread = 16 if dtype == jnp.bfloat16 else 8
        return cls(rows, warps_for(rows * max(columns, head_size), per_thread, least=4))
