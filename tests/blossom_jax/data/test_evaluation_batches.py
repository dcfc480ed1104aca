"""Evaluation batches hold every user once, exactly, in few shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_log import toy_log

from blossom_jax.data.evaluation_batches import evaluation_batches, evaluation_shapes
from blossom_jax.data.split import Targets, leave_one_out
from blossom_jax.errors import UserError

MAX_LENGTH = 50


def batches_of(log, targets, batch_users=8, **options):
    options = {"max_length": MAX_LENGTH, "batch_users": batch_users, **options}
    return list(evaluation_batches(log, targets, **options))


def assert_row_holds(batch, i, history, answer):
    """Compares one row with the user's history, built the slow way."""
    inputs = history[-MAX_LENGTH:]
    padding = batch["item_ids"].shape[1] - len(inputs)
    assert batch["item_ids"][i].tolist() == inputs + [0] * padding
    assert batch["positions"][i].tolist() == [*range(len(inputs))] + [-1] * padding
    assert batch["target"][i] == answer
    assert batch["seen"][i].tolist() == history + [0] * (batch["seen"].shape[1] - len(history))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_every_user_once_and_exactly(lengths):
    log = toy_log([*lengths, 3])
    targets = leave_one_out(log).test
    rows = []
    for batch in batches_of(log, targets):
        for i in np.flatnonzero(batch["row"] >= 0):
            row = batch["row"][i]
            rows.append(row)
            begin, end = log.offsets[targets.users[row]], targets.target[row]
            assert_row_holds(batch, i, log.items[begin:end].tolist(), log.items[end])
    assert sorted(rows) == list(range(len(targets.users)))


def test_filler_rows_are_empty():
    log = toy_log([5, 9, 6])
    (batch,) = batches_of(log, leave_one_out(log).valid)
    assert sorted(batch["row"]) == [-1] * 5 + [0, 1, 2]
    empty = batch["row"] == -1
    for name, value in {"item_ids": 0, "positions": -1, "target": 0, "seen": 0}.items():
        assert (batch[name][empty] == value).all()
        assert batch[name].dtype == np.int32


def test_shapes_are_few_and_a_long_history_widens_its_own_bucket_only():
    log = toy_log([*range(3, 100)] * 3 + [5000])
    batches = batches_of(log, leave_one_out(log).test, batch_users=16)
    shapes = {(*batch["item_ids"].shape, batch["seen"].shape[1]) for batch in batches}
    sizes = {"max_length": MAX_LENGTH, "batch_users": 16}
    assert shapes == set(evaluation_shapes(log, leave_one_out(log).test, **sizes))
    assert shapes == {(16, 16, 16), (16, 32, 32), (16, 50, 64), (16, 50, 256), (16, 50, 16384)}
    assert sum(batch["seen"].shape[1] > 256 for batch in batches) == 1


def test_shapes_are_known_without_users_in_a_bucket():
    log = toy_log([5, 200])
    targets = leave_one_out(log).test
    shapes = evaluation_shapes(log, targets, max_length=64, batch_users=8)
    assert shapes == [(8, 16, 16), (8, 64, 256)]


def test_batches_of_long_rows_are_smaller_but_still_divide():
    log = toy_log([400] * 40)
    targets = leave_one_out(log).test
    rows = [b["row"].size for b in batches_of(log, targets, batch_users=24, max_length=400)]
    assert set(rows) == {3}
    rows = [
        b["row"].size
        for b in batches_of(log, targets, batch_users=24, max_length=400, multiple_of=4)
    ]
    assert set(rows) == {12}


def test_no_users_no_batches():
    none = np.empty(0, np.int64)
    assert not batches_of(toy_log([5]), Targets(none, none))


def test_mistakes_are_named():
    log = toy_log([5])
    with pytest.raises(UserError, match="eval.batch_users=6, devices=4"):
        batches_of(log, leave_one_out(log).test, batch_users=6, multiple_of=4)
