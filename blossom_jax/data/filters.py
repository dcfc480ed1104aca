"""Decides which events of a log are kept: the repeats policy and the k-core."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from blossom_jax.errors import UserError


class Step(NamedTuple):
    """The size of the log after a filter."""

    filter: str
    users: int
    items: int
    events: int


def _keep_all(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    return np.ones(len(users), bool)


def _drop_consecutive(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    changes = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return np.concatenate([np.ones(min(len(users), 1), bool), changes])


def _keep_latest(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    pairs = users.astype(np.int64) * (items.max(initial=0) + 1) + items
    _, from_the_end = np.unique(pairs[::-1], return_index=True)
    keep = np.zeros(len(users), bool)
    keep[len(users) - 1 - from_the_end] = True
    return keep


REPEATS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "keep": _keep_all,
    "drop_consecutive": _drop_consecutive,
    "latest": _keep_latest,
}


def surviving_events(
    users: Int[np.ndarray, "events"],
    items: Int[np.ndarray, "events"],
    *,
    min_user_events: int,
    min_item_events: int,
    repeats: str,
) -> tuple[Int[np.ndarray, "kept"], list[Step]]:
    """Applies every filter in turn until none drops anything, so that all hold at once.

    Args:
      users: Codes from 0, users one after another.
      items: Codes from 0, each user's in time order.
      min_user_events: Drops users with fewer events.
      min_item_events: Drops items with fewer events.
      repeats: "keep" all events, "drop_consecutive" (of a run of one item its first event stays),
        or "latest" (of every user-item pair the last event stays).

    Returns:
      Indices of the events that stay, ascending, and the log's size at the start and after each
      time a filter dropped something.

    Raises:
      UserError: An option out of its range.
    """
    rules = _rules(min_user_events, min_item_events, repeats)
    rows = np.arange(len(users))
    steps = [_step("read", users, items)]
    unchanged = False
    while not unchanged:
        unchanged = True
        for rule, keep in rules.items():
            kept = rows[keep(users[rows], items[rows])]
            if len(kept) < len(rows):
                rows, unchanged = kept, False
                steps.append(_step(rule, users[rows], items[rows]))
    return rows, steps


def _rules(
    min_user_events: int, min_item_events: int, repeats: str
) -> dict[str, Callable[[np.ndarray, np.ndarray], Bool[np.ndarray, "events"]]]:
    if repeats not in REPEATS:
        raise UserError(f"{repeats=} is not one of {', '.join(REPEATS)}")
    if min_user_events < 1 or min_item_events < 1:
        raise UserError(f"{min_user_events=} and {min_item_events=} must be at least 1")
    return {
        f"repeats={repeats}": REPEATS[repeats],
        f"min_user_events={min_user_events}": lambda users, items: (
            np.bincount(users)[users] >= min_user_events
        ),
        f"min_item_events={min_item_events}": lambda users, items: (
            np.bincount(items)[items] >= min_item_events
        ),
    }


def _step(filter: str, users: np.ndarray, items: np.ndarray) -> Step:
    distinct = [int(np.count_nonzero(np.bincount(codes))) for codes in (users, items)]
    return Step(filter, users=distinct[0], items=distinct[1], events=len(users))


def describe_drops(steps: list[Step]) -> str:
    """Returns what each filter dropped over all rounds, as one phrase."""
    dropped: dict[str, np.ndarray] = {}
    for before, after in zip(steps, steps[1:], strict=False):
        loss = np.subtract(before[1:], after[1:])
        dropped[after.filter] = dropped.get(after.filter, 0) + loss
    phrases = [
        f"{rule} dropped {users} users, {items} items and {events} events"
        for rule, (users, items, events) in dropped.items()
    ]
    return "; ".join(phrases) or "no filter dropped anything"
