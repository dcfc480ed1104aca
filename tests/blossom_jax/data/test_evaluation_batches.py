"""Evaluation batches hold every user once, exactly, in few shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_log import toy_log

from blossom_jax.data.evaluation_batches import evaluation_batches, evaluation_shapes
from blossom_jax.data.history_batches import _one_of_few
from blossom_jax.data.split import Targets, leave_one_out
from blossom_jax.errors import UserError

MAX_LENGTH = 50


def batches_of(log, targets, batch_users=8, **options):
    options = {"max_length": MAX_LENGTH, "batch_users": batch_users, **options}
    return list(evaluation_batches(log, targets, **options))


def assert_holds(batch, i, history, answer):
    """Compares what a batch holds of one user with the history; returns where in its rows it is."""
    inputs = history[-MAX_LENGTH:]
    last = batch["last"][i]
    own = np.arange(last + 1 - len(inputs), last + 1)
    assert batch["item_ids"].ravel()[own].tolist() == inputs
    assert batch["positions"].ravel()[own].tolist() == [*range(len(inputs))]
    assert len(set(own // batch["item_ids"].shape[1])) == 1  # one row
    assert batch["target"][i] == answer
    assert batch["seen"][i].tolist() == history + [0] * (batch["seen"].shape[1] - len(history))
    return own


@pytest.mark.parametrize(("multiple_of", "gap"), [(1, 0), (4, 1)])
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_every_user_once_and_exactly(multiple_of, gap, lengths):
    log = toy_log([*lengths, 3])
    targets = leave_one_out(log).test
    found = []
    for batch in batches_of(log, targets, multiple_of=multiple_of, gap=gap):
        taken = np.zeros(batch["item_ids"].size, int)
        part = batch["item_ids"].size // multiple_of
        for i in np.flatnonzero(batch["history"] >= 0):
            user = batch["history"][i]
            found.append(user)
            begin, end = log.offsets[targets.users[user]], targets.target[user]
            own = assert_holds(batch, i, log.items[begin:end].tolist(), log.items[end])
            taken[own] += 1
            # A device has the rows of its users.
            assert set(own // part) == {i // (len(batch["history"]) // multiple_of)}
        empty = taken == 0
        assert taken.max() == 1
        assert (batch["item_ids"].ravel()[empty] == 0).all()
        assert (batch["positions"].ravel()[empty] == -1).all()
        assert_apart(batch["positions"], gap)
    assert sorted(found) == list(range(len(targets.users)))


def assert_apart(positions, gap):
    """Asserts that a history begins at the left or behind `gap` tokens of padding."""
    begins = (positions == 0) & (np.arange(positions.shape[1]) > 0)
    row, column = np.nonzero(begins)
    if gap:
        assert (positions[row, column - 1] == -1).all()


def test_there_may_be_fewer_users_than_places():
    log = toy_log([5, 9, 6])
    (batch,) = batches_of(log, leave_one_out(log).valid)
    assert sorted(batch["history"]) == [-1] * 5 + [0, 1, 2]
    nobody = batch["history"] == -1
    values = {"target": 0, "seen": 0, "last": batch["item_ids"].size}
    for name, value in values.items():
        assert (batch[name][nobody] == value).all()
        assert batch[name].dtype == np.int32


def test_rows_are_full_where_batches_are_many():
    rng = np.random.default_rng(0)
    log = toy_log(rng.geometric(0.12, 4000) + 3)
    batches = batches_of(log, leave_one_out(log).test, batch_users=64)
    full = [batch["positions"] for batch in batches if batch["history"].min() >= 0]
    assert len(full) > 20 and np.mean(np.concatenate(full) < 0) < 0.15


def test_shapes_are_few_and_a_long_history_widens_its_own_bucket_only():
    log = toy_log([*range(3, 100)] * 3 + [5000])
    batches = batches_of(log, leave_one_out(log).test, batch_users=16)
    shapes = {
        (len(batch["last"]), *batch["item_ids"].shape, batch["seen"].shape[1]) for batch in batches
    }
    sizes = {"max_length": MAX_LENGTH, "batch_users": 16}
    assert shapes == set(evaluation_shapes(log, leave_one_out(log).test, **sizes))
    assert shapes == {(16, 9, 64, 64), (16, 15, 64, 256), (16, 1, 64, 16384)}
    assert sum(batch["seen"].shape[1] > 256 for batch in batches) == 1


def test_shapes_are_known_without_users_in_a_bucket():
    log = toy_log([5, 200])
    targets = leave_one_out(log).test
    shapes = evaluation_shapes(log, targets, max_length=64, batch_users=8)
    assert shapes == [(8, 1, 64, 64), (8, 1, 64, 256)]


@pytest.mark.parametrize(("multiple_of", "users"), [(1, 3), (4, 12)])
def test_batches_of_long_rows_are_smaller_but_still_divide(multiple_of, users):
    log = toy_log([400] * 40)
    sizes = {"batch_users": 24, "max_length": 400, "multiple_of": multiple_of}
    batches = batches_of(log, leave_one_out(log).test, **sizes)
    assert {len(batch["last"]) for batch in batches} == {users}
    assert all(len(batch["item_ids"]) % multiple_of == 0 for batch in batches)


def test_numbers_of_rows_are_few():
    found = {_one_of_few(number) for number in range(1, 1025)}
    assert len(found) == 112 and max(found) == 1024
    assert all(number <= _one_of_few(number) <= number * 1.0625 for number in range(1, 1025))


def test_no_users_no_batches():
    none = np.empty(0, np.int64)
    assert not batches_of(toy_log([5]), Targets(none, none))


def test_mistakes_are_named():
    log = toy_log([5])
    with pytest.raises(UserError, match="eval.batch_users=6, devices=4"):
        batches_of(log, leave_one_out(log).test, batch_users=6, multiple_of=4)
