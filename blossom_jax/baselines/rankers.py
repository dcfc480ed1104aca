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
from blossom_jax.data.split import Split, Targets, repeated_targets
from blossom_jax.popularity import item_counts

Batch = dict[str, Any]  # of arrays, from evaluation_batches
DECAY = 0.8  # of item-kNN over the history: the weight of an event over that of the next one
RECENT_DAYS = 7
RANKERS = ("item_knn_last", "item_knn", "last_items", "own_most_frequent", "recent_popularity")


class Ranker(NamedTuple):
    """A way to rank.

    Attributes:
      score: `(params, batch) -> [u, V + 1]`, item k in column k.
      params: A pytree of arrays.
      extend: Adds to a batch of these targets, on the host, what `score` reads besides.
    """

    score: Callable[[Any, Batch], Float[Array, "u catalogue"]]
    params: Any = ()
    extend: Callable[[Targets, Batch], Batch] = lambda targets, batch: batch


def make_rankers(interactions: Interactions, split: Split) -> dict[str, Ranker]:
    """Builds every ranking that the log allows, by name, of `RANKERS`.

    Args:
      interactions: A prepared log; without times there is no "recent_popularity".
      split: Says what is trained on and asked; unless some target repeats an item of its history,
        there is neither "last_items" nor "own_most_frequent".
    """
    neighbours = item_neighbours(interactions, split)
    rankers = {
        "item_knn_last": Ranker(functools.partial(knn_scores, decay=0.0), neighbours),
        "item_knn": Ranker(functools.partial(knn_scores, decay=DECAY), neighbours),
    }
    if any(repeated_targets(interactions, part).any() for part in (split.valid, split.test)):
        rankers["last_items"] = Ranker(functools.partial(_by_recency, interactions.num_items))
        rankers["own_most_frequent"] = Ranker(
            functools.partial(_by_frequency, interactions.num_items)
        )
    if interactions.times is not None:
        count = RecentCounts(interactions, split)
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

    def __init__(self, interactions: Interactions, split: Split, *, days: int = RECENT_DAYS):
        """Sorts what is trained on by time.

        Args:
          interactions: A log with times, in seconds.
          split: Says what is trained on.
          days: Before a question, which is asked at the time of its answer.
        """
        assert interactions.times is not None
        begin = interactions.offsets[:-1]
        user, event = ragged_arange(split.train_end - begin)
        trained = begin[user] + event
        trained = trained[np.argsort(interactions.times[trained], kind="stable")]
        self._times, self._items = interactions.times[trained], interactions.items[trained]
        self._all_times, self._seconds = interactions.times, days * 24 * 3600
        counts = item_counts(interactions, split)
        self._tie_break = counts / (counts.sum() + 1)  # all days: below 1, and where nothing recent

    def __call__(self, targets: Targets, batch: Batch) -> Batch:
        """Adds `recent`, float32[u, V + 1], to a batch of these targets."""
        asked = self._all_times[targets.target[batch["history"]]]
        begin = np.searchsorted(self._times, asked - self._seconds)
        end = np.searchsorted(self._times, asked)  # what happens at that very moment is left out
        recent = np.tile(self._tie_break, (len(asked), 1))
        for counts, first, last in zip(recent, begin, end, strict=True):
            counts += np.bincount(self._items[first:last], minlength=len(counts))
        return batch | {"recent": recent.astype(np.float32)}
