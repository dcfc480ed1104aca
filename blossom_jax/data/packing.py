"""Planning which windows share a row, from their lengths alone."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from blossom_jax.data.ragged import ragged_arange
from blossom_jax.errors import UserError


class Plan(NamedTuple):
    """Rows of windows: row r holds `windows[offsets[r] : offsets[r + 1]]`, one after another."""

    offsets: Int64[np.ndarray, "rows_plus_1"]
    windows: Int64[np.ndarray, "windows"]

    @property
    def num_rows(self) -> int:
        """Counts the rows."""
        return len(self.offsets) - 1

    def windows_of(
        self, rows: Integer[np.ndarray, "n"]
    ) -> tuple[Int64[np.ndarray, "slots"], Int64[np.ndarray, "slots"]]:
        """Lists what some rows hold.

        Args:
          rows: Row numbers, in any order.

        Returns:
          owner: Which element of `rows` each window stands in, ascending.
          windows: The windows, from left to right in each row.
        """
        begin = self.offsets[rows]
        owner, slot = ragged_arange(self.offsets[rows + 1] - begin)
        return owner, self.windows[begin[owner] + slot]


def plan_rows(lengths: Integer[np.ndarray, "windows"], row_length: int) -> Plan:
    """Packs windows into few rows: best fit over the histogram of lengths.

    A pattern is the content of a row in lengths: the longest length left, then always the longest
    that still fits. It is used for as many rows as the histogram allows at once, so that the work
    grows with the number of distinct lengths and not with the number of windows.

    Args:
      lengths: Tokens in each window, at least 1.
      row_length: Tokens in a row, at most.

    Returns:
      A plan in which every window stands once. How many rows it has and which lengths stand in
      each depends on the histogram alone, not on the order of `lengths`.

    Raises:
      ValueError: A window is empty.
      UserError: A window is longer than a row.
    """
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"every window must hold at least one token: {lengths.min()=}")
    if len(lengths) and lengths.max() > row_length:
        raise UserError(
            f"data.row_length must be at least model.max_length: data.row_length={row_length}, "
            f"but a window has {lengths.max()} events"
        )
    counts = np.bincount(lengths)
    sizes = [np.zeros(0, np.int64)]  # windows in each row
    slots = [np.zeros(0, np.int64)]  # lengths in those rows, from left to right
    while counts.any():
        pattern, used = _best_fit(counts, row_length)
        repeats = (counts[used > 0] // used[used > 0]).min()
        counts -= used * repeats
        sizes.append(np.full(repeats, len(pattern)))
        slots.append(np.tile(pattern, repeats))
    windows = np.empty(len(lengths), np.int64)
    windows[_by_length(np.concatenate(slots))] = _by_length(lengths)
    return Plan(np.cumsum(np.concatenate([[0], *sizes])), windows)


def shuffle(plan: Plan, lengths: Integer[np.ndarray, "windows"], rng: np.random.Generator) -> Plan:
    """Exchanges windows of equal length and puts the rows in random order.

    Args:
      plan: A plan for these lengths.
      lengths: Tokens in each window.
      rng: The only source of randomness.

    Returns:
      A plan with as many rows, and the same lengths in them.
    """
    order = rng.permutation(len(lengths))
    exchange = np.empty(len(lengths), np.int64)
    exchange[_by_length(lengths)] = order[_by_length(lengths[order])]
    rows = rng.permutation(plan.num_rows)
    _, windows = plan.windows_of(rows)
    sizes = np.diff(plan.offsets)[rows]
    return Plan(np.cumsum(np.concatenate([[0], sizes])), exchange[windows])


def _best_fit(
    counts: Int64[np.ndarray, "longest_plus_1"], row_length: int
) -> tuple[list[int], Int64[np.ndarray, "longest_plus_1"]]:
    """Fills one row with the longest lengths that fit, and counts how often it uses each."""
    pattern: list[int] = []
    used = np.zeros_like(counts)
    free = row_length
    for length in np.flatnonzero(counts)[::-1].tolist():
        fitting = min(free // length, int(counts[length]))
        pattern += [length] * fitting
        used[length] = fitting
        free -= length * fitting
    return pattern, used


def _by_length(lengths: Integer[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Orders by length; equal lengths keep their order. 16 bits make NumPy sort by radix."""
    short = lengths.max(initial=0) < 2**16
    return np.argsort(lengths.astype(np.uint16) if short else lengths, kind="stable")
