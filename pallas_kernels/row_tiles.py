"""Tiles of the kernels that work on rows of query heads."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RowTiles:
    """Tiles of one kernel.

    Attributes:
      rows: query heads that a program works on at a time.
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
