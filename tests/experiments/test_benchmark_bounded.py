"""Which users are followed, and what is made of their scores."""

import types

import numpy as np
import pytest

from experiments.benchmark import bounded


def test_users_with_enough_events_before_the_target_are_followed():
    log = types.SimpleNamespace(items=np.arange(12), offsets=np.array([0, 5, 12]))
    test = types.SimpleNamespace(users=np.array([0, 1]), target=np.array([4, 11]))
    split = types.SimpleNamespace(test=test)
    follow = [
        [items.tolist() for items in bounded.long_histories(log, split, n)] for n in (4, 5, 7)
    ]
    assert follow == [[[0, 1, 2, 3], [7, 8, 9, 10]], [[6, 7, 8, 9, 10]], []]


def test_errors_ignore_padding_and_what_ranks_nothing():
    want = np.array([[9.0, 1, 2, 3, 6], [9.0, 4, 3, 2, 1]])
    got = want + 5
    got[:, 0] = 0
    same = {"mean_error": 0, "largest_error": 0, "same_top_k": 1}
    assert bounded.compare(got, want, 2) == pytest.approx(same)
    got[1] = [9, 2, 3, 2, 3]  # by 2, 0, 0 and 2: the mean is what it was
    found = bounded.compare(got, want, 2)
    assert found["largest_error"] == pytest.approx(np.sqrt(8 / 5))
    assert found["mean_error"] == pytest.approx(np.sqrt(8 / 5) / 2)
    assert found["same_top_k"] == 0.75
