"""Items that targets are ranked among in sampled protocols: drawn once, by seed.

Two things tell the protocols apart. Items are drawn uniformly ("uni100") or as often as they were
trained on ("pop100"). And what is not drawn is the target alone, as in RecBole, or besides it the
user's whole history, as in SASRec ("uni100_unseen", "pop100_unseen").
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, Int32

from blossom_jax import metrics
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.ragged import distinct, ragged_arange
from blossom_jax.data.split import Targets

_ROUNDS = 4  # of drawing for many users at once, before the rest get theirs one by one
_BLOCK = 4096  # users at once


@dataclasses.dataclass(frozen=True)
class Negatives:
    """Other items for each target.

    Attributes:
      items: int32[n, P, N] by user and protocol, distinct, never the target; 0 = none, where a
        user has fewer than N others.
      names: Of the P protocols.
      num_seen: int64[n], different items of each user's history, the target left out.
    """

    items: Int32[np.ndarray, "n P N"]
    names: tuple[str, ...]
    num_seen: Int[np.ndarray, "n"]


def draw(
    interactions: Interactions,
    targets: Targets,
    counts: Int[np.ndarray, "catalogue"],
    *,
    num: int = 100,
    seed: int = 0,
) -> Negatives:
    """Draws the negatives of every sampled protocol, without repetition.

    Args:
      interactions: A prepared log.
      targets: The users to evaluate and their targets.
      counts: [V + 1], how often each item was trained on, by `popularity.item_counts`. Items that
        never were are not drawn by popularity.
      num: Items to draw for each user and protocol; at most all others.
      seed: Of the draw.

    Returns:
      Negatives that depend on nothing but the arguments.
    """
    num_items = interactions.num_items
    target = interactions.items[targets.target]
    own = np.arange(len(target)) * (num_items + 1) + target
    seen = np.setdiff1d(_seen_codes(interactions, targets), own, assume_unique=True)
    with_seen = distinct(np.concatenate([own, seen]))
    uniform = (np.arange(num_items + 1) > 0).astype(np.int64)
    num = min(num, num_items - 1)
    items = [metrics.draw_negatives(target, num_items, num, seed)]
    for stream, (weights, excluded) in enumerate(
        [(uniform, with_seen), (counts, own), (counts, with_seen)], start=1
    ):
        rng = np.random.default_rng((seed, stream))
        items.append(_draw_weighted(rng, weights, excluded, len(target), num))
    return Negatives(
        items=np.stack(items, axis=1),
        names=(f"uni{num}", f"uni{num}_unseen", f"pop{num}", f"pop{num}_unseen"),
        num_seen=np.bincount(seen // (num_items + 1), minlength=len(target)),
    )


def _seen_codes(interactions, targets) -> Int[np.ndarray, "codes"]:
    """Returns index of target * (V + 1) + item, ascending, for each different item seen before."""
    begin = interactions.offsets[targets.users]
    user, event = ragged_arange(targets.target - begin)
    return distinct(user * (interactions.num_items + 1) + interactions.items[begin[user] + event])


def _draw_weighted(
    rng: np.random.Generator,
    weights: Int[np.ndarray, "catalogue"],
    excluded: Int[np.ndarray, "codes"],
    num_users: int,
    num: int,
) -> Int32[np.ndarray, "n num"]:
    """Draws items one after the other with chances as their weights, passing over excluded ones."""
    drawn = np.zeros((num_users, num), np.int32)
    for users in _blocks(num_users) if num else ():  # one item alone has no others
        for _ in range(_ROUNDS):
            if not len(users):
                break
            more = _draw_items(rng, weights, (len(users), num + num // 4 + 1))
            candidates = np.concatenate([drawn[users], more], axis=1)
            is_out = _is_in(users[:, None] * len(weights) + candidates, excluded)
            drawn[users] = _first_valid(candidates, ~is_out & (candidates > 0))[:, :num]
            users = users[drawn[users, -1] == 0]
        for user in users.tolist():
            _complete(rng, drawn[user], weights, excluded, user)
    return drawn


def _blocks(num_users: int) -> Iterator[Int[np.ndarray, "users"]]:
    for begin in range(0, num_users, _BLOCK):
        yield np.arange(begin, min(begin + _BLOCK, num_users))


def _draw_items(rng, weights, shape) -> Int32[np.ndarray, "users draws"]:
    running = np.cumsum(weights)
    number = rng.integers(0, running[-1], shape)
    return np.searchsorted(running, number, side="right").astype(np.int32)


def _is_in(codes: Int[np.ndarray, "*n"], ascending: Int[np.ndarray, "m"]) -> Bool[np.ndarray, "*n"]:
    place = np.searchsorted(ascending, codes).clip(max=len(ascending) - 1)
    return ascending[place] == codes


def _first_valid(
    items: Int32[np.ndarray, "users draws"], valid: Bool[np.ndarray, "users draws"]
) -> Int32[np.ndarray, "users draws"]:
    """Moves the valid items of each row, each where it comes first, to the left; 0 fills up."""
    width = items.shape[1]
    # Sorting numbers that hold item and column is several times faster than a stable argsort.
    item, column = np.divmod(np.sort(items.astype(np.int64) * width + np.arange(width)), width)
    repeats = np.zeros_like(valid)
    np.put_along_axis(repeats, column[:, 1:], item[:, 1:] == item[:, :-1], axis=1)
    kept = valid & ~repeats
    row, place = np.nonzero(kept)
    left = np.zeros_like(items)
    left[row, np.cumsum(kept, axis=1)[row, place] - 1] = items[row, place]
    return left


def _complete(rng, drawn: Int32[np.ndarray, "num"], weights, excluded, user: int) -> None:
    """Draws what is missing of one user's items from all that are left, however few."""
    left = weights.astype(np.float64)
    left[_is_in(user * len(weights) + np.arange(len(weights)), excluded)] = 0
    left[drawn] = 0
    begin = np.count_nonzero(drawn)
    num = min(len(drawn) - begin, np.count_nonzero(left))
    if num:
        drawn[begin : begin + num] = rng.choice(
            len(weights), num, replace=False, p=left / left.sum()
        )
