"""What a log is like, as far as it decides how a model may do on it and what its metrics mean."""

from typing import TypedDict

import numpy as np
from jaxtyping import Int

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.ragged import distinct
from blossom_jax.data.split import Split, item_counts

_QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)
_TOP_SHARES = (0.01, 0.05, 0.2)


class Statistics(TypedDict):
    """JSON values only; all shares lie in [0, 1].

    Attributes:
      users: Number of users.
      items: Number of items.
      events: Number of events.
      density: Share of pairs of a user and an item that occur.
      length: Percentiles of the events of a user, by percent.
      test_length: Likewise of the events before a test target.
      first_day: Of the first event, UTC, as in ISO 8601; None where the log has no times.
      last_day: Of the last event, likewise.
      tied_share: Share of events at the very time of the user's event before: their order is the
        file's. None where the log has no times.
      repeated_share: Share of events whose item the user had before.
      repeated_target_share: Share of test targets that stand in their own history.
      unseen_target_share: Share of test targets that training never sees.
      popular_target_share: Share of test targets among the most trained items, by share of items.
    """

    users: int
    items: int
    events: int
    density: float
    length: dict[int, float]
    test_length: dict[int, float]
    first_day: str | None
    last_day: str | None
    tied_share: float | None
    repeated_share: float
    repeated_target_share: float
    unseen_target_share: float
    popular_target_share: dict[float, float]


def describe(interactions: Interactions, split: Split) -> Statistics:
    """Measures a log.

    Args:
      interactions: A prepared log.
      split: Says what is trained on and what is asked in test.
    """
    test = split.test
    pairs = _distinct_pairs(interactions)
    times = interactions.times
    return Statistics(
        users=interactions.num_users,
        items=interactions.num_items,
        events=interactions.num_events,
        density=pairs / (interactions.num_users * interactions.num_items),
        length=_percentiles(np.diff(interactions.offsets)),
        test_length=_percentiles(test.target - interactions.offsets[test.users]),
        first_day=None if times is None else _day(times.min()),
        last_day=None if times is None else _day(times.max()),
        tied_share=None if times is None else _tied(interactions, times),
        repeated_share=1 - pairs / interactions.num_events,
        repeated_target_share=split.card["test"]["repeated_target_share"],
        unseen_target_share=split.card["test"]["target_unseen_in_training_share"],
        popular_target_share=_popular_targets(interactions, split),
    )


def _percentiles(lengths: Int[np.ndarray, "n"]) -> dict[int, float]:
    return dict(zip(_QUANTILES, np.percentile(lengths, _QUANTILES).tolist(), strict=True))


def _owners(interactions: Interactions) -> Int[np.ndarray, "events"]:
    lengths = np.diff(interactions.offsets)
    return np.repeat(np.arange(interactions.num_users), lengths)


def _day(seconds: np.integer) -> str:
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))


def _distinct_pairs(interactions: Interactions) -> int:
    pairs = _owners(interactions) * (interactions.num_items + 1) + interactions.items
    return len(distinct(pairs))


def _tied(interactions: Interactions, times: Int[np.ndarray, "events"]) -> float:
    same = (np.diff(times) == 0) & (np.diff(_owners(interactions)) == 0)
    return float(same.sum() / interactions.num_events)


def _popular_targets(interactions: Interactions, split: Split) -> dict[float, float]:
    counts = item_counts(interactions, split)[1:]
    place = np.empty(len(counts), np.int64)  # of each item by falling count, from 0
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    asked = place[interactions.items[split.test.target] - 1]
    return {share: float(np.mean(asked < np.ceil(share * len(counts)))) for share in _TOP_SHARES}
