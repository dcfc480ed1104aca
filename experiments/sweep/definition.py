"""Reads a sweep file: rows, the reference among them, and the grid that all are tuned on."""

import dataclasses
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from blossom_jax.errors import UserError
from experiments import _cli

Values = dict[str, Any]  # config key: value

_DRAW_SEED = 0  # of the combinations that are tried
_METRIC = r"(full|full_keep|(uni|pop)\d+(_unseen)?)/(recall|ndcg|mrr)@[1-9]\d*"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file says; configs/sweeps/quickstart.py documents it.

    Attributes:
      reference: Name of the row that the others are compared with.
      metric: Of the test, higher is better.
      rows: Changes of the config by name of row.
      grid: Values to try by config key.
      trials: Combinations of the grid to try; 0 = all.
      tuning_seeds: Seeds that every combination is tried with.
    """

    reference: str
    metric: str
    rows: Mapping[str, Values]
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    trials: int = 0
    tuning_seeds: int = 1

    def __post_init__(self):
        if not re.fullmatch(_METRIC, self.metric):
            raise UserError(
                f"metric={self.metric!r} must be recall@k, ndcg@k or mrr@k of a protocol, such as "
                "full/ndcg@10: rows are compared by the ranks of targets"
            )
        if self.reference not in self.rows:
            raise UserError(f"reference={self.reference!r} is none of the rows {[*self.rows]}")
        for name, changes in self.rows.items():
            if not re.fullmatch(r"[\w.+=-]+", name) or name.startswith("."):
                raise UserError(f"row {name!r} must be made of letters, digits and -_.+= alone")
            if both := set(changes) & set(self.grid):
                raise UserError(f"row {name!r} sets {min(both)}, which the grid tunes; do one only")
        if self.trials < 0:
            raise UserError(f"trials must not be negative, got {self.trials}")
        if self.tuning_seeds < 1:
            raise UserError(f"tuning_seeds must be at least 1, got {self.tuning_seeds}")
        for key, values in self.grid.items():
            if not values:
                raise UserError(f"grid[{key!r}] has no value to try")

    @property
    def num_trials(self) -> int:
        """Points of the grid that a row is tuned on; 0 where there is nothing to choose."""
        count = len(self.points())
        return count if count > 1 else 0

    def points(self) -> list[Values]:
        """Returns the combinations of the grid that every row is tuned on; [{}] without a grid."""
        combined = itertools.product(*self.grid.values())
        every = [dict(zip(self.grid, values, strict=True)) for values in combined]
        if not 0 < self.trials < len(every):
            return every
        drawn = random.Random(_DRAW_SEED).sample(range(len(every)), self.trials)
        return [every[i] for i in sorted(drawn)]


def load_sweep(path: str) -> Sweep:
    """Returns the sweep of a Python file with a function `get_sweep`.

    Raises:
      UserError: No such file, or one that does not hold a sweep.
    """
    values = _cli.call_function_of_file("--sweep", path, "get_sweep")
    known = [field.name for field in dataclasses.fields(Sweep)]
    required = known[:3]
    if not isinstance(values, dict) or not set(required) <= set(values) <= set(known):
        shown = [*values] if isinstance(values, dict) else type(values)
        raise UserError(
            f"--sweep={path}: get_sweep must return a dict with {required} and, if need be, "
            f"{known[3:]}; got {shown}"
        )
    return Sweep(**values)


def with_values(config: ml_collections.ConfigDict, values: Values) -> ml_collections.ConfigDict:
    """Returns a locked copy of a config with some values changed.

    Raises:
      UserError: An unknown key, or a value of another type.
    """
    changed = config.copy_and_resolve_references()  # as locked as the original
    for key, value in values.items():
        _cli.override(changed, key, str(value))
    return changed
