"""Catalogue coverage: how much of the catalogue is recommended to anyone at all.

While users are ranked, one number is kept for each item: the best place that it took in anyone's
ranking. Coverage at every cut-off follows from these, whatever the number of users. Items with
equal scores take places in the order of their numbers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

NOWHERE = np.iinfo(np.int32).max  # place of an item that is in nobody's ranking


def note_places(
    best: Int[Array, "catalogue"],
    scores: Float[Array, "B items"],
    is_user: Bool[Array, "B"],
    *,
    k: int,
) -> Int[Array, "catalogue"]:
    """Lowers the best place of every item that is among some user's first k.

    Args:
      best: Best place of each item so far, from 0; `NOWHERE` at first. Item i at i, up to V.
      scores: Of every item; item i in column i. Columns beyond `best` count for nothing, nor does
        column 0, nor a score that is NaN or -inf.
      is_user: False at rows that are nobody's.
      k: Places that are looked at, at most the number of items.

    Returns:
      The new best places.
    """
    scores = scores[:, 1 : len(best)]
    value, column = jax.lax.top_k(jnp.where(jnp.isnan(scores), -jnp.inf, scores), k)  # [B, k]
    is_place = is_user[:, None] & (value > -jnp.inf)
    item = 1 + column
    return best.at[item].min(jnp.where(is_place, jnp.arange(k), NOWHERE))


def coverage(best: Int[np.ndarray, "catalogue"], ks: Sequence[int]) -> dict[str, float]:
    """Returns the share of the catalogue that is among some user's first k, for each k.

    Args:
      best: From `note_places`, with its k at least the largest of `ks` (or all items).
      ks: Where rankings are cut off.

    Returns:
      {"coverage@1": .., "coverage@5": .., ...}
    """
    return {f"coverage@{k}": float(np.mean(best[1:] < k)) for k in ks}
