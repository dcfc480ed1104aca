"""How the kernels of block selection cut up their work."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SelectionTiles:
    """Tiles of one kernel.

    Attributes:
      queries: queries that a program holds (backward by keys: at a time).
      slots: summary keys at a time (backward by keys: that a program holds).
      num_warps: warps of a program.
      num_stages: depth of the pipeline.
    """

    queries: int = 16
    slots: int = 32
    num_warps: int = 1
    num_stages: int = 1
