"""The two split rules, against plain loops."""

import json

import numpy as np
import polars as pl
import pytest

from blossom_jax.data.prepare import from_table
from blossom_jax.data.split import global_time, leave_one_out, repeated_targets
from blossom_jax.errors import UserError


def _log(histories, timed=True):
    """Builds a log of {user: "items"} or {user: [(item, time), ...]}."""
    rows = [
        (user, *(event if isinstance(event, tuple) else (event, time)))
        for user, events in histories.items()
        for time, event in enumerate(events)
    ]
    table = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return from_table(table if timed else table.drop("time"), name="small")


def _questions(log, targets):
    """Returns {user: (input history, answer)} in raw ids."""
    raw = log.item_ids[log.items - 1].tolist()
    return {
        str(log.user_ids[user]): ("".join(raw[log.offsets[user] : target]), raw[target])
        for user, target in zip(targets.users, targets.target, strict=True)
    }


def _training(log, split):
    raw = log.item_ids[log.items - 1].tolist()
    ends = zip(log.user_ids.tolist(), log.offsets, split.train_end, strict=False)
    return {user: "".join(raw[begin:end]) for user, begin, end in ends}


HISTORIES = {"u": "abcde", "one": "a", "two": "ba", "three": "cba", "back": "abcb"}


def test_leave_one_out():
    log = _log(HISTORIES)
    split = leave_one_out(log)
    expected = {"u": "abc", "one": "a", "two": "ba", "three": "c", "back": "ab"}
    assert _training(log, split) == expected
    assert _questions(log, split.valid) == {
        "u": ("abc", "d"),
        "three": ("c", "b"),
        "back": ("ab", "c"),
    }
    assert _questions(log, split.test) == {
        "u": ("abcd", "e"),
        "three": ("cb", "a"),
        "back": ("abc", "b"),
    }
    third = pytest.approx(1 / 3)
    assert split.card == {
        "rule": "leave_one_out",
        "users": 5,
        "users_train_only": 2,
        "items_unseen_in_training": 2,
        "valid": {
            "users": 3,
            "users_unseen_in_training": 0,
            "repeated_target_share": 0.0,
            "target_unseen_in_training_share": third,
        },
        "test": {
            "users": 3,
            "users_unseen_in_training": 0,
            "repeated_target_share": third,
            "target_unseen_in_training_share": third,
        },
    }
    json.dumps(split.card)


def test_leave_one_out_needs_no_times():
    split, timed = leave_one_out(_log(HISTORIES, timed=False)), leave_one_out(_log(HISTORIES))
    np.testing.assert_array_equal(split.train_end, timed.train_end)
    np.testing.assert_array_equal(split.test.target, timed.test.target)


# Boundaries 10 and 20; an event at a boundary lies after it.
TIMED = {
    "all": [("a", 1), ("b", 9), ("c", 10), ("d", 19), ("e", 20), ("a", 25)],
    "skips": [("a", 2), ("b", 21), ("c", 22)],  # nothing to validate on
    "stops": [("b", 3), ("c", 4)],  # trains only
    "new": [("c", 12), ("f", 15), ("c", 23)],  # unseen in training, known in test
    "newest": [("a", 30), ("b", 31)],  # no history to answer from
}


def test_global_time():
    log = _log(TIMED)
    split = global_time(log, valid_time=10, test_time=20)
    assert _training(log, split) == {
        "all": "ab",
        "skips": "a",
        "stops": "bc",
        "new": "",
        "newest": "",
    }
    assert _questions(log, split.valid) == {"all": ("ab", "c")}
    assert _questions(log, split.test) == {
        "all": ("abcd", "e"),
        "skips": ("a", "b"),
        "new": ("cf", "c"),
    }
    card = split.card
    assert (card["valid_users_without_history"], card["test_users_without_history"]) == (1, 1)
    assert card["users_train_only"] == 1
    assert card["items_unseen_in_training"] == 3
    assert card["test"]["users_unseen_in_training"] == 1
    assert card["test"]["repeated_target_share"] == pytest.approx(1 / 3)
    assert card["test"]["target_unseen_in_training_share"] == pytest.approx(1 / 3)
    json.dumps(card)


def test_global_time_never_trains_on_or_answers_from_the_future():
    rng = np.random.default_rng(0)
    rows = {f"u{u}": sorted(rng.integers(0, 100, 8).tolist()) for u in range(40)}
    log = _log({u: [(f"i{t % 9}", t) for t in times] for u, times in rows.items()})
    split = global_time(log, valid_time=50, test_time=70)
    for user in range(log.num_users):
        assert (log.times[log.offsets[user] : split.train_end[user]] < 50).all()
        assert (log.times[split.train_end[user] : log.offsets[user + 1]] >= 50).all()
    for targets, low, high in ((split.valid, 50, 70), (split.test, 70, 100)):
        assert len(targets.users) > 10
        assert (log.offsets[targets.users] < targets.target).all()
        assert (targets.target < log.offsets[targets.users + 1]).all()
        assert ((low <= log.times[targets.target]) & (log.times[targets.target] < high)).all()
        assert (log.times[targets.target - 1] < low).all()


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ((20, 10), "valid_time=20 must be earlier than test_time=10"),
        ((0, 10), "no user to train on; the log spans 1 to 31"),
        ((26, 28), "no user to validate on"),
        ((10, 40), "no user to test on"),
    ],
)
def test_global_time_refuses(times, words):
    with pytest.raises(UserError, match=words):
        global_time(_log(TIMED), valid_time=times[0], test_time=times[1])


def test_global_time_needs_times():
    with pytest.raises(UserError, match="small has no times"):
        global_time(_log(HISTORIES, timed=False), valid_time=1, test_time=2)


def test_repeated_targets_equal_a_loop():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 15, 60)
    log = _log(
        {f"u{u}": rng.integers(0, 12, n).astype(str).tolist() for u, n in enumerate(lengths)}
    )
    targets = leave_one_out(log).test
    expected = [
        log.items[target] in log.items[log.offsets[user] : target]
        for user, target in zip(targets.users, targets.target, strict=True)
    ]
    assert 0 < sum(expected) < len(expected)
    np.testing.assert_array_equal(repeated_targets(log, targets), expected)
