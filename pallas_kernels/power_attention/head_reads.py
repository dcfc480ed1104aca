"""How `near_keys` reads the query heads that share a key, beyond the band."""

import dataclasses
import math

import jax
from jax.experimental import pallas as pl

HEADS_BYTES = 64  # of a token, that heads read side by side come to at least, if there are as many
READS_AT_ONCE = 2  # before any of them is used


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
        return math.gcd(self.of_distance, READS_AT_ONCE)

    @property
    def distances(self) -> int:
        """Distances that a step looks at."""
        return READS_AT_ONCE // self.of_step

    def steps(self, distances):
        """Returns how many steps so many distances take."""
        chunks = jax.lax.div(distances + self.distances - 1, self.distances)
        return chunks * (self.of_distance // self.of_step)

    def place(self, step):
        """Returns a step's first distance, by number, and its first read of each."""
        steps_of_distance = self.of_distance // self.of_step
        first = jax.lax.div(step, steps_of_distance) * self.distances
        return first, jax.lax.rem(step, steps_of_distance) * self.of_step
