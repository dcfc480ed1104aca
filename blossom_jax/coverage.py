"""Catalogue coverage: how much of the catalogue is recommended to anyone at all.

While users are ranked, one number is kept for each item: the best place that it took in anyone's
ranking. Coverage at every cut-off follows from these, whatever the number of users. Items with
equal scores take places in the order of their numbers.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

NOWHERE = np.iinfo(np.int32).max  # place of an item that is in nobody's ranking


def note_places(
    best: Int[Array, "catalogue"], items: Int[Array, "B k"], is_place: Bool[Array, "B k"]
) -> Int[Array, "catalogue"]:
    """Lowers the best place of every item that is among some user's first k.

    Args:
      best: Best place of each item so far, from 0; `NOWHERE` at first. Item i at i, up to V.
      items: Every user's first k, best first.
      is_place: False where there is no user, or no item.

    Returns:
      The new best places.
    """
    place = jnp.where(is_place, jnp.arange(items.shape[1]), NOWHERE)
    return best.at[items].min(place)


def coverage(best: Int[np.ndarray, "catalogue"], ks: Sequence[int]) -> dict[str, float]:
    """Returns the share of the catalogue that is among some user's first k, for each k.

    Args:
      best: From `note_places`, with its k at least the largest of `ks` (or all items).
      ks: Where rankings are cut off.

    Returns:
      {"coverage@1": .., "coverage@5": .., ...}
    """
    return {f"coverage@{k}": float(np.mean(best[1:] < k)) for k in ks}
