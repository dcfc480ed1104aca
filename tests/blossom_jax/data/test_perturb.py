"""Shuffled histories hold the same events, and targets stay where they are."""

import numpy as np
from toy_log import toy_log

from blossom_jax.data import leave_one_out
from blossom_jax.data.perturb import shuffle_histories


def test_only_the_events_seen_change_places():
    log = toy_log([2, 12, 5, 30])  # the first user is asked nothing
    targets = leave_one_out(log).test
    shuffled = shuffle_histories(log, targets, last=8, seed=0)
    fixed = np.arange(log.num_events)  # event i has item i + 1
    for user, target in zip(targets.users, targets.target, strict=True):
        begin = max(log.offsets[user], target - 8)
        seen = shuffled.items[begin:target]
        np.testing.assert_array_equal(np.sort(seen), log.items[begin:target])
        fixed = np.setdiff1d(fixed, np.arange(begin, target))
    np.testing.assert_array_equal(shuffled.items[fixed], log.items[fixed])
    assert len(fixed) == 2 + (1 + 3) + 1 + (1 + 21)
    assert (shuffled.items != log.items).sum() > 10
    assert (shuffle_histories(log, targets, last=8, seed=1).items != shuffled.items).any()
    assert log.items[0] == 1 and log.items[-1] == log.num_events  # the original is as it was
