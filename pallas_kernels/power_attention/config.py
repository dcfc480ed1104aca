"""How the kernels of near keys cut up their work."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class NearTiles:
    """Tiles of one kernel.

    Attributes:
      members: query heads of a group that a program works on at a time; divides the group.
      num_warps: warps of a program.
      num_stages: depth of the pipeline.
    """

    members: int = 4
    num_warps: int = 1
    num_stages: int = 1
