"""How the kernels of selected blocks cut up their work."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BlockTiles:
    """Tiles of one kernel.

    Attributes:
      rows: query heads that a program holds at a time.
      num_warps: warps of a program.
      num_stages: depth of the pipeline.
    """

    rows: int = 64
    num_warps: int = 2
    num_stages: int = 1
