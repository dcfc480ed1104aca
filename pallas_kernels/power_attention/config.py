"""How the kernels of near keys cut up their work."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class NearTiles:
    """Tiles of one kernel.

    Attributes:
      num_warps: warps of a program.
      num_stages: depth of the pipeline.
    """

    num_warps: int = 4
    num_stages: int = 1
