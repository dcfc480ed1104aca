"""Popularity: what any model has to beat, under the same rules.

Every user has the same scores, so ranks are looked up instead of computed for each user.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from blossom_jax.coverage import NOWHERE
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.ragged import ragged_arange
from blossom_jax.data.split import Split, Targets
from blossom_jax.evaluate import Ranks
from blossom_jax.negatives import Negatives


def item_counts(interactions: Interactions, split: Split) -> Int[np.ndarray, "items"]:
    """Counts how often each item occurs in what is trained on.

    Returns:
      int64[num_items + 1]; item k at k, 0 at 0.
    """
    begin = interactions.offsets[:-1]
    user, event = ragged_arange(split.train_end - begin)
    trained = interactions.items[begin[user] + event]
    return np.bincount(trained, minlength=interactions.num_items + 1)


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

    user, item = _seen(interactions, targets)
    ahead = np.bincount(user, _ahead(counts[item], own[user]), minlength=len(target))
    repeated = np.bincount(user, item == target[user], minlength=len(target)) > 0
    ahead_of_own = _ahead(counts[negatives.items], own[:, None, None]) * (negatives.items > 0)
    return Ranks(
        full=np.where(repeated, np.inf, full_keep - ahead),
        full_keep=full_keep,
        sampled=dict(zip(negatives.names, 1 + np.sum(ahead_of_own, axis=2).T, strict=True)),
        num_items=interactions.num_items,
        num_negatives=negatives.items.shape[2],
        num_seen=negatives.num_seen,
        best_places=_best_places(counts, user, item, max(coverage_ks)) if coverage_ks else {},
    )


def _best_places(counts, user, item, k):
    """Finds the best place of each item in anyone's first k, as `coverage.note_places` does.

    Args:
      counts: [V + 1], the scores of every user.
      user: Ascending, the user of each seen item.
      item: The items that are seen, each once a user.
      k: Places that are looked at.
    """
    order = 1 + np.argsort(-counts[1:], kind="stable")
    full, full_keep = np.full((2, len(counts)), NOWHERE, np.int32)
    full_keep[order[:k]] = np.arange(len(order[:k]))

    # With everything seen taken out, the place q of a user goes to the item that has q unseen ones
    # before it: to order[q + the seen items that have at most q unseen ones before them].
    place = np.empty_like(counts)
    place[order] = np.arange(len(order))
    place = np.sort(user * len(counts) + place[item]) - user * len(counts)
    first = np.searchsorted(user, np.arange(user[-1] + 1))
    unseen_before = place - (np.arange(len(user)) - first[user])
    for q in range(min(k, len(order))):
        taken = q + np.bincount(user[unseen_before <= q], minlength=len(first))
        taken = np.unique(taken[taken < len(order)])
        full[order[taken]] = np.minimum(full[order[taken]], q)
    return {"full": full, "full_keep": full_keep}


def _ahead(others, own):
    return (others > own) + 0.5 * (others == own)


def _seen(interactions, targets):
    """Lists (index of target, item) for each different item of each history."""
    begin = interactions.offsets[targets.users]
    user, event = ragged_arange(targets.target - begin)
    item = interactions.items[begin[user] + event]
    codes = np.unique(user * (interactions.num_items + 1) + item)
    return np.divmod(codes, interactions.num_items + 1)
