"""Decides which events of a log are kept: the repeats policy and the k-core."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from blossom_jax.data.event_parts import EventParts
from blossom_jax.errors import UserError


class Options(NamedTuple):
    """What is to hold of the events that are kept.

    Attributes:
      min_user_events: Drops users with fewer events.
      min_item_events: Drops items with fewer events.
      repeats: "keep" all events, "drop_consecutive" (of a run of one item its first event stays),
        or "latest" (of every user-item pair the last event stays).
    """

    min_user_events: int
    min_item_events: int
    repeats: str

    def check(self) -> None:
        """Raises UserError at an option out of its range."""
        least_user, least_item, repeats = self
        if repeats not in REPEATS:
            raise UserError(f"{repeats=} is not one of {', '.join(REPEATS)}")
        if least_user < 1 or least_item < 1:
            raise UserError(
                f"min_user_events={least_user} and min_item_events={least_item} must be at least 1"
            )


class Step(NamedTuple):
    """The size of the log after a filter."""

    filter: str
    users: int
    items: int
    events: int


class Counts(NamedTuple):
    """Events of each user and of each item that are left, by code."""

    user: Int[np.ndarray, "users"]
    item: Int[np.ndarray, "items"]

    def step(self, filter: str) -> Step:
        """Returns the size of the log, as it is after a filter."""
        users, items = (int(np.count_nonzero(counts)) for counts in self)
        return Step(filter, users, items, int(self.user.sum()))


Keep = Callable[[np.ndarray], Bool[np.ndarray, "events"]]


def _drop_consecutive(events: np.ndarray) -> np.ndarray:
    user, item = events["user"], events["item"]
    changes = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return np.concatenate([np.ones(min(len(events), 1), bool), changes])


def _keep_latest(events: np.ndarray) -> np.ndarray:
    user, item = events["user"].astype(np.int64), events["item"]
    pairs = user * (item.max(initial=0) + 1) + item
    _, from_the_end = np.unique(pairs[::-1], return_index=True)
    keep = np.zeros(len(events), bool)
    keep[len(events) - 1 - from_the_end] = True
    return keep


REPEATS: dict[str, Keep | None] = {
    "keep": None,
    "drop_consecutive": _drop_consecutive,
    "latest": _keep_latest,
}


def filter_events(parts: EventParts, counts: Counts, options: Options) -> list[Step]:
    """Applies every filter in turn until none drops anything, so that all hold at once.

    Args:
      parts: Sorted events; those that are dropped leave it.
      counts: Of these events; updated in place.
      options: In their range.

    Returns:
      The log's size at the start and after each time a filter dropped something.
    """
    least_user, least_item, repeats = options
    rules: dict[str, Callable[[], Keep | None]] = {
        f"repeats={repeats}": lambda: REPEATS[repeats],
        f"min_user_events={least_user}": lambda: _at_least(least_user, counts.user, "user"),
        f"min_item_events={least_item}": lambda: _at_least(least_item, counts.item, "item"),
    }
    steps = [counts.step("read")]
    unchanged = False
    while not unchanged:
        unchanged = True
        for name, rule in rules.items():
            keep = rule()
            if keep is not None and _drop(parts, counts, keep):
                unchanged = False
                steps.append(counts.step(name))
    return steps


def _at_least(least: int, counts: np.ndarray, field: str) -> Keep | None:
    """Returns what keeps users or items that are frequent enough; None where all are."""
    enough = counts >= least
    return None if enough[counts > 0].all() else lambda events: enough[events[field]]


def _drop(parts: EventParts, counts: Counts, keep: Keep) -> bool:
    """Drops what one filter does not keep; tells whether that was anything."""
    changed = False
    for part, events in enumerate(parts):
        kept = keep(events)
        if kept.all():
            continue
        changed = True
        parts.replace(part, events[kept])
        dropped = events[~kept]
        np.subtract.at(counts.user, dropped["user"], 1)
        np.subtract.at(counts.item, dropped["item"], 1)
    return changed


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
