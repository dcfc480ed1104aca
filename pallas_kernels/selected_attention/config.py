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
        narrow = dtype == jnp.bfloat16
        wide = max(keys, head_size) * (1 if narrow else 2)
        rows = max(16, 64 * 32 // max(32, wide))  # what shared memory has room for
        elements = max(rows, keys) * max(keys, head_size)
        return cls(rows, warps_for(elements, 32 if narrow else 16, least=1), num_stages=2)

    @classmethod
    def backward(cls, keys: int, head_size: int, dtype: jax.typing.DTypeLike) -> "BlockTiles":
        """Chooses tiles by shape for the backward kernel, likewise.

        Few rows: a warp then needs few registers, so that many wait for memory side by side.
        """
        narrow = dtype == jnp.bfloat16
        wide = max(keys, head_size) * (1 if narrow else 2)
        rows = 32 if narrow and wide <= 64 else 16  # what shared memory has room for
        elements = max(rows, keys) * max(keys, head_size)
        per_thread = 32 if narrow else 16 if head_size <= 64 else 8
        return cls(rows, warps_for(elements, per_thread, least=1))
