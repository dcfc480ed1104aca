"""Windows hold every next-item target once, inside one history, aligned to its end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_log import toy_log, trained_events

from blossom_jax.data.split import leave_one_out
from blossom_jax.data.windows import training_windows
from blossom_jax.errors import UserError

histories = st.lists(st.integers(1, 40), min_size=1, max_size=8).filter(lambda x: max(x) > 3)


def windows_of(lengths, max_length, target="all"):
    log = toy_log(lengths)
    windows = training_windows(log, leave_one_out(log), max_length, target)
    return list(zip(windows.begin.tolist(), windows.length.tolist(), strict=True))


def test_windows_follow_one_another_back_from_the_end():
    # Of 10 events, 8 are trained on: 7 inputs, in windows of at most 3, the short one first.
    assert windows_of([10], 3) == [(0, 1), (1, 3), (4, 3)]


def test_last_has_a_window_for_every_prefix():
    assert windows_of([7], 3, "last") == [(0, 1), (0, 2), (0, 3), (1, 3)]


def test_masked_has_the_last_event_too_and_needs_two():
    assert windows_of([10], 3, "masked") == [(0, 2), (2, 3), (5, 3)]
    assert windows_of([1, 2, 3, 4], 5, "masked") == [(1, 2), (6, 2)]


def test_histories_without_a_pair_of_events_have_no_window():
    # 1 event; 2 events that train only; 3 of which 1 is trained on; 4 of which 2 are.
    assert windows_of([1, 2, 3, 4], 5) == [(1, 1), (6, 1)]


@given(histories, st.integers(1, 12))
def test_every_target_once(lengths, max_length):
    log = toy_log(lengths)
    split = leave_one_out(log)
    windows = training_windows(log, split, max_length)
    targets = [b + 1 + k for b, n in zip(*windows, strict=True) for k in range(n)]
    assert targets == trained_events(log, split)
    assert windows.length.max() <= max_length
    user_of = np.repeat(np.arange(len(lengths)), lengths)
    np.testing.assert_array_equal(user_of[windows.begin], user_of[windows.begin + windows.length])


@given(histories, st.integers(1, 12))
def test_every_target_ends_one_prefix(lengths, max_length):
    log = toy_log(lengths)
    split = leave_one_out(log)
    windows = training_windows(log, split, max_length, "last")
    target = windows.begin + windows.length
    assert target.tolist() == trained_events(log, split)
    first = log.offsets[np.searchsorted(log.offsets, target, side="right") - 1]
    np.testing.assert_array_equal(windows.begin, np.maximum(first, target - max_length))


def test_mistakes_are_named():
    with pytest.raises(UserError, match="model.max_length must be at least 1: max_length=0"):
        windows_of([5], 0)
    with pytest.raises(UserError, match="train.target.*target='first'"):
        windows_of([5], 3, "first")
    with pytest.raises(UserError, match="toy: no history has two events to train on"):
        windows_of([3, 1], 3)
