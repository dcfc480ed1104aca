"""Counting inside many ranges at once: what makes loops over users, windows or rows unnecessary."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, Integer

_SLAB = 2**20  # numbers that exist at once


def ragged_arange(
    counts: Integer[np.ndarray, "ranges"],
) -> tuple[Int64[np.ndarray, "total"], Int64[np.ndarray, "total"]]:
    """Enumerates 0..counts[i]-1 for every i, one range after another.

    Args:
      counts: How many numbers each range has, at least 0.

    Returns:
      owner: Which range each number belongs to: [2, 0, 3] gives 0 0 2 2 2.
      within: The number itself: 0 1 0 1 2.
    """
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - starts[owner]


def distinct(values: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "different"]:
    """Returns the different values, ascending.

    As `np.unique` does, which since numpy 2.3 puts whole numbers into a hash table: a million of
    them take it half a second, and this 6 ms.
    """
    values = np.sort(values)
    is_first = np.ones(len(values), bool)
    is_first[1:] = values[1:] != values[:-1]
    return values[is_first]


def slabs(counts: Integer[np.ndarray, "ranges"]) -> Iterator[slice]:
    """Cuts ranges into runs of whole ones that are small enough to be enumerated at once.

    Args:
      counts: How many numbers each range has, at least 0.

    Yields:
      Slices of the ranges, one after another, with about 2**20 numbers or a single range in each.
    """
    slab = np.cumsum(counts) // _SLAB
    bounds = [0, *(1 + np.flatnonzero(np.diff(slab))).tolist(), len(counts)]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        if end > begin:
            yield slice(begin, end)
