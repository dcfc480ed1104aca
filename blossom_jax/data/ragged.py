"""Counting inside many ranges at once: what makes loops over users, windows or rows unnecessary."""

import numpy as np
from jaxtyping import Int64, Integer


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
