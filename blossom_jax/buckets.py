"""Metrics of similar users: by the length of their history, and by the popularity of the target."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.split import Targets
from blossom_jax.protocol_metrics import KS, Ranks, summarize

_LENGTHS = {5 * 2**n for n in range(12)}  # where buckets end: 5, 10, 20, ..., 10,240
_COUNTS = (0, 5, 10, 20, 40, 80, 160, 320, 640, 1280)

Bucket = dict[str, int | float]


def history_lengths(interactions: Interactions, targets: Targets) -> Int[np.ndarray, "n"]:
    """Counts the events before each target, those beyond what the model sees included."""
    return targets.target - interactions.offsets[targets.users]


def by_length(
    ranks: Ranks,
    lengths: Int[np.ndarray, "n"],
    *,
    dense_length: int,
    ks: Sequence[int] = KS,
) -> list[Bucket]:
    """Averages the metrics of users with histories of similar length.

    Args:
      ranks: From `Evaluator`.
      lengths: From `history_lengths`, for the same users.
      dense_length: Up to this length, (N + 1) S, attention leaves nothing out; a bucket ends there.
      ks: Where rankings are cut off.

    Returns:
      A dict for each bucket that has users, shortest histories first: "min_length" and
      "max_length" that occur in it, "num_users", and the metrics of `summarize` but for coverage.
    """
    return _by("length", ranks, lengths, _LENGTHS | {dense_length}, ks)


def by_popularity(
    ranks: Ranks, counts: Int[np.ndarray, "n"], *, ks: Sequence[int] = KS
) -> list[Bucket]:
    """Averages the metrics of users whose targets are similarly popular.

    Args:
      ranks: From `Evaluator`.
      counts: How often each user's target occurs in what is trained on, by
        `popularity.item_counts`. Targets that training never saw are a bucket of their own.
      ks: Where rankings are cut off.

    Returns:
      A dict for each bucket that has users, rarest targets first: "min_count" and "max_count" that
      occur in it, and the rest as in `by_length`.
    """
    return _by("count", ranks, counts, _COUNTS, ks)


def _by(
    name: str,
    ranks: Ranks,
    values: Int[np.ndarray, "n"],
    ends: Iterable[int],
    ks: Sequence[int],
) -> list[Bucket]:
    bucket = np.searchsorted(sorted(ends), values)  # a value equal to an end is inside
    return [_bucket(name, ranks, values, bucket == b, ks) for b in np.unique(bucket)]


def _bucket(name, ranks, values, inside, ks):
    return {
        f"min_{name}": int(values[inside].min()),
        f"max_{name}": int(values[inside].max()),
        "num_users": int(inside.sum()),
        **summarize(ranks.of_users(inside), ks),
    }
