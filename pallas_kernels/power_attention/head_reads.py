"""How `near_keys` reads the query heads that share a key, beyond the band."""

import dataclasses
import math

import jax
from jax.experimental import pallas as pl

HEADS_BYTES = 64  # of a token, that heads read side by side come to at least, if there are as many
MOST_READS = 4  # before any of them is used, and
MOST_BYTES = 512  # of a token in them, if one read has no more


@dataclasses.dataclass(frozen=True)
class HeadReads:
    """Which query heads of a group are read together, and in which steps.

    Attributes:
      group: R, query heads that share a key.
      row_bytes: of one of them.
    """

    group: int
    row_bytes: int

    @property
    def together(self) -> int:
        """Heads that stand side by side in one read; divides the group."""
        return math.gcd(self.group, pl.cdiv(HEADS_BYTES, self.row_bytes))

    @property
    def of_distance(self) -> int:
        """Reads that take the whole group at one distance."""
        return self.group // self.together

    @property
    def of_step(self) -> int:
        """Reads that a step makes at each of its distances."""
        fitting = MOST_BYTES // (self.together * self.row_bytes)
        return math.gcd(self.of_distance, max(1, min(fitting, MOST_READS)))

    @property
    def distances(self) -> int:
        """Distances that a step looks at: one alone, whose positions serve all reads, if it can."""
        return 2 if self.of_step == 1 else 1

    def steps(self, distances):
        """Returns how many steps so many distances take."""
        chunks = jax.lax.div(distances + self.distances - 1, self.distances)
        return chunks * (self.of_distance // self.of_step)

    def place(self, step):
        """Returns a step's first distance, by number, and its first read of each."""
        steps_of_distance = self.of_distance // self.of_step
        first = jax.lax.div(step, steps_of_distance) * self.distances
        return first, jax.lax.rem(step, steps_of_distance) * self.of_step
