"""A log in which every event has an item of its own, so that a token tells where it is from."""

import numpy as np

from blossom_jax.data.interactions import Interactions


def toy_log(lengths):
    """Event i has item i + 1; user u has lengths[u] events."""
    num_events = sum(lengths)
    return Interactions(
        name="toy",
        items=np.arange(1, num_events + 1, dtype=np.int32),
        times=None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        user_ids=np.array([f"u{u}" for u in range(len(lengths))]),
        item_ids=np.array([f"i{i}" for i in range(num_events)]),
        card={},
    )


def trained_events(log, split):
    """Lists the events that training must predict: all of each training history but its first."""
    pairs = zip(log.offsets, split.train_end, strict=False)
    return [event for begin, end in pairs for event in range(begin + 1, end)]
