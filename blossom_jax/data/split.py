"""Splits a log into what is trained on and what is asked in validation and test."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from blossom_jax.data.interactions import Interactions
from blossom_jax.errors import UserError

MIN_EVENTS = 3


class Targets(NamedTuple):
    """One question a user: the input is items[offsets[user] : target], the answer items[target].

    Attributes:
      users: int64[n], ascending.
      target: int64[n], indices into `Interactions.items`.
    """

    users: Int[np.ndarray, "n"]
    target: Int[np.ndarray, "n"]


class Split(NamedTuple):
    """A protocol.

    Attributes:
      train_end: int64[num_users]; user u trains on items[offsets[u] : train_end[u]].
      valid: Questions for choosing a model.
      test: Questions to be asked once.
      card: The rule and what it left out: JSON values only.
    """

    train_end: Int[np.ndarray, "users"]
    valid: Targets
    test: Targets
    card: dict


def leave_one_out(interactions: Interactions) -> Split:
    """Asks for each user's last event in test and for the one before it in validation.

    Training sees neither. The validation event is part of the test question's input. Users with
    fewer than 3 events train on all of theirs and are asked nothing.

    Args:
      interactions: The log.

    Returns:
      The split; valid and test have the same users.
    """
    end = interactions.offsets[1:]
    asked = np.diff(interactions.offsets) >= MIN_EVENTS
    users = np.flatnonzero(asked)
    train_end = np.where(asked, end - 2, end)
    valid, test = Targets(users, end[users] - 2), Targets(users, end[users] - 1)
    return _describe(interactions, Split(train_end, valid, test, {"rule": "leave_one_out"}))


def global_time(interactions: Interactions, *, valid_time: int, test_time: int) -> Split:
    """Trains on what happened before a moment and asks about what happened after it.

    A user's validation question is their first event from valid_time on, if it lies before
    test_time; their test question is their first event from test_time on. Users without an event
    before the boundary have no input to answer from: they are counted, not asked. Targets that
    training never saw stay in and are counted.

    Args:
      interactions: A log with times.
      valid_time: Unix seconds; training uses earlier events only.
      test_time: Unix seconds, later than valid_time.

    Returns:
      The split.

    Raises:
      UserError: A log without times, boundaries out of order, or one that leaves nothing to train
        on or nothing to ask (says what times the log spans).
    """
    times = interactions.times
    if times is None:
        raise UserError(f"{interactions.name} has no times; use split=leave_one_out")
    if valid_time >= test_time:
        raise UserError(f"{valid_time=} must be earlier than {test_time=}")
    begin, end = interactions.offsets[:-1], interactions.offsets[1:]
    train_end = _first_from(times, interactions.offsets, valid_time)
    test_begin = _first_from(times, interactions.offsets, test_time)
    valid_users = np.flatnonzero((begin < train_end) & (train_end < test_begin))
    test_users = np.flatnonzero((begin < test_begin) & (test_begin < end))
    new_in_valid = (begin == train_end) & (train_end < test_begin)
    new_in_test = (begin == test_begin) & (test_begin < end)
    split = Split(
        train_end,
        Targets(valid_users, train_end[valid_users]),
        Targets(test_users, test_begin[test_users]),
        {
            "rule": "global_time",
            "valid_time": int(valid_time),
            "test_time": int(test_time),
            "valid_users_without_history": int(new_in_valid.sum()),
            "test_users_without_history": int(new_in_test.sum()),
        },
    )
    _refuse_empty(split, interactions.offsets[:-1], times)
    return _describe(interactions, split)


def _first_from(
    times: Int[np.ndarray, "events"], offsets: Int[np.ndarray, "users_plus_1"], moment: int
) -> Int[np.ndarray, "users"]:
    """Finds each user's first event from a moment on by bisection, all users at once."""
    low, high = offsets[:-1].copy(), offsets[1:].copy()
    while (open_ := np.flatnonzero(low < high)).size:
        middle = (low[open_] + high[open_]) // 2
        earlier = times[middle] < moment
        low[open_[earlier]] = middle[earlier] + 1
        high[open_[~earlier]] = middle[~earlier]
    return low


def _refuse_empty(
    split: Split, begin: Int[np.ndarray, "users"], times: Int[np.ndarray, "events"]
) -> None:
    parts = {
        "train on": (split.train_end > begin).sum(),
        "validate on": len(split.valid.users),
        "test on": len(split.test.users),
    }
    for purpose, users in parts.items():
        if not users:
            raise UserError(
                f"valid_time={split.card['valid_time']} and test_time={split.card['test_time']} "
                f"leave no user to {purpose}; the log spans "
                f"{times.min()} to {times.max()}"
            )


def _describe(interactions: Interactions, split: Split) -> Split:
    trained = item_counts(interactions, split) > 0
    trains = split.train_end > interactions.offsets[:-1]
    asked = np.zeros(interactions.num_users, bool)
    asked[split.valid.users] = asked[split.test.users] = True
    card = {
        **split.card,
        "users": interactions.num_users,
        "users_train_only": int((trains & ~asked).sum()),
        "items_unseen_in_training": int((~trained[1:]).sum()),
        "valid": _describe_targets(interactions, split.valid, trained, trains),
        "test": _describe_targets(interactions, split.test, trained, trains),
    }
    return split._replace(card=card)


def _describe_targets(
    interactions: Interactions,
    targets: Targets,
    trained: Bool[np.ndarray, "items_plus_1"],
    trains: Bool[np.ndarray, "users"],
) -> dict:
    asked = max(len(targets.users), 1)
    unseen = ~trained[interactions.items[targets.target]]
    return {
        "users": len(targets.users),
        "users_unseen_in_training": int((~trains[targets.users]).sum()),
        "repeated_target_share": float(repeated_targets(interactions, targets).sum() / asked),
        "target_unseen_in_training_share": float(unseen.sum() / asked),
    }


def item_counts(interactions: Interactions, split: Split) -> Int[np.ndarray, "items_plus_1"]:
    """Counts how often each item occurs in what is trained on.

    Returns:
      int64[num_items + 1]; item k at k, 0 at 0.
    """
    counts = np.zeros(interactions.num_items + 1, np.int64)
    for _, items in interactions.stretches(interactions.offsets[:-1], split.train_end):
        counts += np.bincount(items, minlength=len(counts))
    return counts


def repeated_targets(interactions: Interactions, targets: Targets) -> Bool[np.ndarray, "n"]:
    """Returns which targets stand in their own input history already."""
    answer = interactions.items[targets.target]
    repeated = np.zeros(len(answer), bool)
    begin = interactions.offsets[targets.users]
    for owner, items in interactions.stretches(begin, targets.target):
        repeated[owner[items == answer[owner]]] = True
    return repeated
