"""Rankings that learn nothing, as scores for `evaluate.Evaluator`.

Popularity itself, by far the fastest to evaluate, has a file of its own: `popularity.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blossom_jax.baselines.item_knn import item_neighbours, knn_scores
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.ragged import ragged_arange
from blossom_jax.data.split import Split, Targets
from blossom_jax.popularity import item_counts

Batch = dict[str, Any]  # of arrays, from evaluation_batches
DECAY = 0.8  # of item-kNN over the history: the weight of an event over that of the next one
RECENT_DAYS = 7


class Ranker(NamedTuple):
    """A way to rank.

    Attributes:
      score: `(params, batch) -> [b, V + 1]`, item k in column k.
      params: A pytree of arrays.
      extend: Adds to a batch, on the host, what `score` reads besides.
    """

    score: Callable[[Any, Batch], Float[Array, "b catalogue"]]
    params: Any = ()
    extend: Callable[[Batch], Batch] = lambda batch: batch


def make_rankers(interactions: Interactions, split: Split, targets: Targets) -> dict[str, Ranker]:
    """Builds every ranking that the log allows, by name.

    Args:
      interactions: A prepared log; without times there is no "recent_popularity".
      split: Says what is trained on.
      targets: The users that will be asked about.
    """
    neighbours = item_neighbours(interactions, split)
    rankers = {
        "item_knn_last": Ranker(functools.partial(knn_scores, decay=0.0), neighbours),
        "item_knn": Ranker(functools.partial(knn_scores, decay=DECAY), neighbours),
        "last_items": Ranker(functools.partial(_by_recency, interactions.num_items)),
        "own_most_frequent": Ranker(functools.partial(_by_frequency, interactions.num_items)),
    }
    if interactions.times is not None:
        count = RecentCounts(interactions, split, targets)
        rankers["recent_popularity"] = Ranker(lambda _, batch: batch["recent"], extend=count)
    return rankers


def _by_recency(num_items, _, batch):
    """Ranks the items of the history by when they were last in it, the others all alike."""
    seen = batch["seen"]
    when = jnp.where(seen > 0, jnp.arange(1.0, seen.shape[1] + 1), 0)
    return _zeros(num_items, seen).at[jnp.arange(len(seen))[:, None], seen].max(when)


def _by_frequency(num_items, _, batch):
    """Ranks the items of the history by how often they are in it, the others all alike."""
    seen = batch["seen"]
    return _zeros(num_items, seen).at[jnp.arange(len(seen))[:, None], seen].add(1.0)


def _zeros(num_items, seen):
    return jnp.zeros((len(seen), num_items + 1))


class RecentCounts:
    """Counts how often each item was trained on in the days before a question was asked."""

    def __init__(
        self, interactions: Interactions, split: Split, targets: Targets, *, days: int = RECENT_DAYS
    ):
        """Sorts what is trained on by time.

        Args:
          interactions: A log with times, in seconds.
          split: Says what is trained on.
          targets: The questions; each is asked at the time of its answer.
          days: Before that time.
        """
        assert interactions.times is not None
        begin = interactions.offsets[:-1]
        user, event = ragged_arange(split.train_end - begin)
        trained = begin[user] + event
        trained = trained[np.argsort(interactions.times[trained], kind="stable")]
        times, asked = interactions.times[trained], interactions.times[targets.target]
        self._items = interactions.items[trained]
        self._end = np.searchsorted(times, asked)  # what happens at that very moment is left out
        self._begin = np.searchsorted(times, asked - days * 24 * 3600)
        counts = item_counts(interactions, split)
        self._tie_break = counts / (counts.sum() + 1)  # all days: below 1, and where nothing recent

    def __call__(self, batch: Batch) -> Batch:
        """Adds `recent`, float32[b, V + 1], to a batch of the targets."""
        recent = np.tile(self._tie_break, (len(batch["row"]), 1))
        for counts, row in zip(recent, batch["row"], strict=True):
            if row >= 0:
                items = self._items[self._begin[row] : self._end[row]]
                counts += np.bincount(items, minlength=len(counts))
        return batch | {"recent": recent.astype(np.float32)}
