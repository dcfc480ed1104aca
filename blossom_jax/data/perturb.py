"""Histories changed on purpose, to see what a model makes of their order."""

import dataclasses

import numpy as np

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.ragged import ragged_arange
from blossom_jax.data.split import Targets


def shuffle_histories(
    interactions: Interactions, targets: Targets, *, last: int, seed: int
) -> Interactions:
    """Puts the events that a model sees before each target into random order.

    The last `last` events change places among themselves: the same events are seen, and the same
    items are left out of the ranking.

    Args:
      interactions: The log.
      targets: The users and their targets; the targets stay where they are.
      last: Events before a target that change places; those before them stay.
      seed: Of the order.

    Returns:
      The log with other `items`, in memory; it is for asking these targets alone.
    """
    length = np.minimum(targets.target - interactions.offsets[targets.users], last)
    row, k = ragged_arange(length)
    event = (targets.target - length)[row] + k
    # Sorting by (user, lot) permutes inside each history, and all of them at once.
    order = np.lexsort((np.random.default_rng(seed).random(len(event)), row))
    items = np.array(interactions.items)
    items[event] = items[event[order]]
    return dataclasses.replace(interactions, items=items, directory="")
