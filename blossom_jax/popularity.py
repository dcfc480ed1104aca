"""Popularity: what any model has to beat, under the same rules.

Every user has the same scores, so ranks are looked up instead of computed for each user.
"""

from collections.abc import Sequence

import numpy as np

from blossom_jax.coverage import NOWHERE
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.ragged import distinct
from blossom_jax.data.split import Split, Targets, item_counts
from blossom_jax.negatives import Negatives
from blossom_jax.protocol_metrics import Ranks


def popularity_ranks(
    interactions: Interactions,
    split: Split,
    targets: Targets,
    negatives: Negatives,
    coverage_ks: Sequence[int] = (),
) -> Ranks:
    """Ranks every target by how often each item occurs in what is trained on.

    Args:
      interactions: A prepared log.
      split: Says what is trained on.
      targets: The users to evaluate and their targets.
      negatives: From `negatives.draw`, those of the model.
      coverage_ks: Where the rankings are cut off whose coverage is asked for, if it is.

    Returns:
      What `evaluate.Evaluator` finds for a model whose scores are the counts.
    """
    counts = item_counts(interactions, split)
    target = interactions.items[targets.target]
    own = counts[target]

    ascending = np.sort(counts[1:])
    above = len(ascending) - np.searchsorted(ascending, own, side="right")
    equal = len(ascending) - above - np.searchsorted(ascending, own, side="left") - 1
    full_keep = 1 + above + 0.5 * equal

    full, sampled = full_keep.copy(), np.ones(negatives.items.shape[:2])
    order = 1 + np.argsort(-counts[1:], kind="stable")
    k = min(max(coverage_ks, default=0), len(order))
    best = np.full((2, len(counts)), NOWHERE, np.int32)
    best[1, order[:k]] = np.arange(k)
    begin = interactions.offsets[targets.users]
    for owner, seen in interactions.stretches(begin, targets.target):
        users = slice(owner[0], owner[-1] + 1)
        user, item = _different(owner - users.start, seen)
        missed = user[item == target[users][user]]
        full[users] -= np.bincount(user, _ahead(counts[item], own[users][user]))
        full[users][missed] = np.inf
        drawn = negatives.items[users]
        ahead = _ahead(counts[drawn], own[users, None, None])
        sampled[users] += np.sum(ahead, axis=2, where=drawn > 0)
        if k:
            _note_places(best[0], order, user, item, k)
    return Ranks(
        full=full,
        full_keep=full_keep,
        sampled=dict(zip(negatives.names, sampled.T, strict=True)),
        num_items=interactions.num_items,
        num_negatives=negatives.items.shape[2],
        num_seen=negatives.num_seen,
        best_places={"full": best[0], "full_keep": best[1]} if k else {},
    )


def _note_places(best, order, user, item, k):
    """Lowers the best place of each item in anyone's first k, as `coverage.note_places` does.

    Args:
      best: [V + 1], updated in place.
      order: [V], the ranking that is everyone's, but for what they have seen.
      user: Ascending, from 0 without gaps, the user of each seen item.
      item: The items that are seen, each once a user.
      k: Places that are looked at.
    """
    # With everything seen taken out, the place q of a user goes to the item that has q unseen ones
    # before it: to order[q + the seen items that have at most q unseen ones before them].
    place = np.empty(len(best), np.int64)
    place[order] = np.arange(len(order))
    place = np.sort(user * len(best) + place[item]) - user * len(best)
    first = np.searchsorted(user, np.arange(user[-1] + 1))
    unseen_before = place - (np.arange(len(user)) - first[user])
    for q in range(k):
        taken = q + np.bincount(user[unseen_before <= q], minlength=len(first))
        taken = distinct(taken[taken < len(order)])
        best[order[taken]] = np.minimum(best[order[taken]], q)


def _ahead(others, own):
    return (others > own) + 0.5 * (others == own)


def _different(user, item):
    """Drops repeated pairs, and sorts the others."""
    width = item.max() + np.int64(1)
    return np.divmod(distinct(user * width + item), width)
