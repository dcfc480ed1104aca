"""Plans place every window once, overflow no row, leave no room that a later window could use."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blossom_jax.data.packing import plan_rows, shuffle
from blossom_jax.data.ragged import ragged_arange
from blossom_jax.errors import UserError

ROW_LENGTH = 16
window_lengths = st.lists(st.integers(1, ROW_LENGTH), max_size=60).map(
    lambda lengths: np.array(lengths, np.int64)
)


def rows_of(plan, lengths):
    """Returns the lengths in each row."""
    return np.split(lengths[plan.windows], plan.offsets[1:-1]) if plan.num_rows else []


def test_ragged_arange_counts_in_each_range():
    owner, within = ragged_arange(np.array([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert within.tolist() == [0, 1, 0, 1, 2]


def test_a_plan_by_hand():
    lengths = np.array([3, 10, 6, 3, 10, 16])
    rows = [row.tolist() for row in rows_of(plan_rows(lengths, 16), lengths)]
    assert rows == [[16], [10, 6], [10, 3, 3]]


@given(window_lengths)
def test_every_window_stands_once(lengths):
    plan = plan_rows(lengths, ROW_LENGTH)
    assert sorted(plan.windows) == list(range(len(lengths)))
    assert plan.offsets[0] == 0 and plan.offsets[-1] == len(lengths)
    assert (np.diff(plan.offsets) > 0).all()


@given(window_lengths)
def test_rows_do_not_overflow_nor_refuse_what_fits(lengths):
    rows = rows_of(plan_rows(lengths, ROW_LENGTH), lengths)
    for i, row in enumerate(rows):
        free = ROW_LENGTH - row.sum()
        assert free >= 0
        assert all(free < later.min() for later in rows[i + 1 :])


@given(window_lengths, st.randoms(use_true_random=False))
def test_the_layout_depends_on_the_histogram_alone(lengths, random):
    mixed = np.array(random.sample(lengths.tolist(), len(lengths)), np.int64)
    plan, other = plan_rows(lengths, ROW_LENGTH), plan_rows(mixed, ROW_LENGTH)
    np.testing.assert_array_equal(plan.offsets, other.offsets)
    np.testing.assert_array_equal(lengths[plan.windows], mixed[other.windows])


@given(window_lengths, st.integers(0, 9))
def test_a_shuffle_keeps_the_rows_but_for_their_order(lengths, seed):
    plan = plan_rows(lengths, ROW_LENGTH)
    other = shuffle(plan, lengths, np.random.default_rng(seed))
    assert sorted(other.windows) == list(range(len(lengths)))
    rows, shuffled = (sorted(map(tuple, rows_of(p, lengths))) for p in (plan, other))
    assert rows == shuffled


def test_a_shuffle_moves_windows_between_rows_and_rows_between_places():
    lengths = np.tile([9, 5, 2], 200)
    plan = plan_rows(lengths, ROW_LENGTH)
    assert plan.num_rows == 200
    other = shuffle(plan, lengths, np.random.default_rng(0))
    again = shuffle(plan, lengths, np.random.default_rng(0))
    np.testing.assert_array_equal(other.windows, again.windows)

    def neighbours(p):
        return {tuple(sorted(row)) for row in p.windows.reshape(200, 3).tolist()}

    assert len(neighbours(plan) & neighbours(other)) < 5
    long_windows = [p.windows.reshape(200, 3)[:, 0] for p in (plan, other)]
    assert (long_windows[0] == long_windows[1]).mean() < 0.05


def test_short_histories_fill_rows():
    # Lengths as in review data: half below 6, a few at the cut of 50.
    lengths = np.minimum(np.random.default_rng(0).zipf(1.7, 30_000) + 2, 50)
    plan = plan_rows(lengths, 64)
    assert lengths.sum() / (plan.num_rows * 64) > 0.99


def test_mistakes_are_named():
    with pytest.raises(UserError, match="data.row_length must be at least model.max_length"):
        plan_rows(np.array([5, 17]), 16)
    with pytest.raises(ValueError, match="at least one token"):
        plan_rows(np.array([5, 0]), 16)
