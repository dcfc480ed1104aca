"""How the kernels of near keys cut up their work."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class NearTiles:
    """Tiles of one kernel.

    Attributes:
      rows: query heads that a program holds.
      keys: tokens on the other side of a product, at most.
      num_warps: warps of a program.
      num_stages: depth of the pipeline.
    """

    rows: int = 128
    keys: int = 16
    num_warps: int = 4
    num_stages: int = 1
