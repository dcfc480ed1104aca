"""How the kernels of block selection cut up their work."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.triton_tools import warps_for


@dataclasses.dataclass(frozen=True)
class SelectionTiles:
    """Tiles of one kernel.

    Attributes:
      queries: queries that a program holds (backward by keys: at a time).
      slots: summary keys at a time (backward by keys: that a program holds).
      num_warps: warps of a program.
      num_stages: depth of the pipeline.
    """

    queries: int
    slots: int
    num_warps: int
    num_stages: int = 1

    def __post_init__(self):
        """Refuses what a program cannot be."""
        for size in (self.queries, self.slots):
            if size & (size - 1) or size < 16:
                raise ValueError(f"{self} must have powers of two of at least 16")

    @classmethod
    def heuristics(cls, head_size: int, dtype: jax.typing.DTypeLike) -> "SelectionTiles":
        """Chooses tiles by shape: few queries, since one whose scores are close is scored anew with
        all of its tile.

        Args:
          head_size: D, padded.
          dtype: of the summary keys.
        """
        per_thread = 32 if dtype == jnp.bfloat16 else 16
        return cls(16, 32, warps_for(32 * head_size, per_thread, least=1), num_stages=3)
