"""Ranks of the items that users chose, and what is measured on them.

Ties count half: rank = 1 + items above + half of the other items that score the same. An item
whose score is NaN is above nothing, and a chosen item with that score is a miss: its rank is
infinite. So an item is taken out of a ranking by giving it the score NaN.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from threadpoolctl import threadpool_limits

from blossom_jax.errors import UserError


def without_seen(
    scores: Float[Array, "B items"], seen: Int[Array, "B S"]
) -> Float[Array, "B items"]:
    """Takes items that users have already seen out of their rankings.

    Args:
      scores: Of every item; item k in column k.
      seen: Items of each user, in any order, repeated at will.

    Returns:
      The scores, with NaN at seen items. Items beyond the last column count for nothing.
    """
    return jax.vmap(lambda row, items: row.at[items].set(jnp.nan))(scores, seen)


def ahead(others: Float[Array, "B items"], own: Float[Array, "B 1"]) -> Float[Array, "B items"]:
    """Tells what each other item adds to the rank of one's own: 1, 1/2 if they tie, or 0."""
    return (others > own).astype(jnp.float32) + 0.5 * (others == own)


def metrics_from_ranks(
    ranks: Float[np.ndarray, "n"], ks: Sequence[int] = (1, 5, 10, 20)
) -> dict[str, float]:
    """Averages Recall@k, NDCG@k and MRR@k over users who chose one item each.

    Recall is 1 where rank <= k. NDCG and MRR are 1 / log2(1 + rank) and 1 / rank there, and 0
    elsewhere.

    Args:
      ranks: Rank of each user's target; inf = a miss.
      ks: Where the ranking is cut off.

    Returns:
      {"recall@1": .., "ndcg@1": .., "mrr@1": .., "recall@5": .., ...}

    Raises:
      ValueError: If there are no users.
    """
    if not len(ranks):
        raise ValueError(f"metrics need at least one user, got {ranks.shape=}")
    return {name: float(np.mean(gains)) for name, gains in _gains(ranks, ks).items()}


def gains_from_ranks(ranks: Float[np.ndarray, "*n"], name: str) -> Float[np.ndarray, "*n"]:
    """Returns what each user adds to a metric; their mean is the metric.

    Args:
      ranks: Rank of each user's target; inf = a miss.
      name: "recall@10", "ndcg@5", ...

    Raises:
      UserError: A name that is no metric of ranks.
    """
    kind, _, k = name.partition("@")
    if kind not in ("recall", "ndcg", "mrr") or not k.isdigit():
        raise UserError(f"the metric must be recall@k, ndcg@k or mrr@k, got {name!r}")
    return _gains(ranks, [int(k)])[name]


def _gains(ranks, ks):
    """Returns what each user adds to each metric."""
    ranks = np.asarray(ranks, np.float64)
    curves = {"recall": np.ones_like(ranks), "ndcg": 1 / np.log2(1 + ranks), "mrr": 1 / ranks}
    return {
        f"{name}@{k}": np.where(ranks <= k, curve, 0) for k in ks for name, curve in curves.items()
    }


def draw_negatives(
    targets: Int[np.ndarray, "n"], num_items: int, num: int = 100, seed: int = 0
) -> Int[np.ndarray, "n num"]:
    """Draws other items for each target, uniformly and without repetition (RecBole's rule).

    Only the target itself is left out; items of the user's history may be drawn. A catalogue of
    `num` items or fewer gives all the others.

    Args:
      targets: The item that each user chose.
      num_items: V, size of the catalogue.
      num: Items to draw.
      seed: Of the draw.

    Returns:
      int32 items in 1..num_items. Row i depends on nothing but the arguments.
    """
    rng = np.random.default_rng(seed)
    num_others = num_items - 1
    num = min(num, num_others)
    # Floyd's method: a number that is there already gives way to the largest one possible, which
    # cannot be.
    drawn = np.empty((len(targets), num), np.int32)
    for i, largest in enumerate(range(num_others - num + 1, num_others + 1)):
        number = rng.integers(1, largest + 1, len(targets), dtype=np.int32)
        repeated = np.any(drawn[:, :i] == number[:, None], axis=1)
        drawn[:, i] = np.where(repeated, largest, number)
    return drawn + (drawn >= np.asarray(targets)[:, None])


def corrected_metrics_from_ranks(
    ranks: Float[np.ndarray, "n"],
    ks: Sequence[int] = (1, 5, 10, 20),
    *,
    num_items: int,
    num_negatives: int,
    num_excluded: Int[np.ndarray, "n"] | int = 0,
    variance_weight: float = 0.03,
) -> dict[str, float]:
    """Estimates the metrics of a full ranking from ranks among uniform negatives.

    Each sampled rank is given the value that makes the estimate best over all true ranks r: least
    squared bias plus `variance_weight` times the variance, weighted with 1 / r. This is the
    bias-variance estimator of Krichene & Rendle, "On Sampled Metrics for Item Recommendation",
    KDD 2020, https://doi.org/10.1145/3394486.3403226, but for the weights: theirs are equal, and
    since models put most targets near the top, that gives 4 to 10 times too little with 100
    negatives of 20,000 items. The estimate stays rough. For popularity on four data sets it was
    1.1 to 2.2 times the true Recall@10 or NDCG@10, where sampling alone gave 7 to 37 times.

    Args:
      ranks: Rank of each user's target among itself and the negatives; inf = a miss.
      ks: Where the full ranking is cut off.
      num_items: V, size of the catalogue.
      num_negatives: Negatives a user, drawn without repetition; all others where those are fewer.
      num_excluded: Items besides the target that were never drawn for a user, and are not in the
        full ranking either. Taken down to whole hundredths of V.
      variance_weight: In 0..1.

    Returns:
      As `metrics_from_ranks`. An estimate near 0 can be slightly negative.
    """
    step = max(1, num_items // 100)
    sizes = num_items - np.broadcast_to(num_excluded, np.shape(ranks)) // step * step
    total = {}
    for size in np.unique(sizes).tolist():
        num = min(num_negatives, size - 1)
        names, values = _corrected_values(tuple(ks), size, num, variance_weight)
        chosen = ranks[sizes == size]
        for name, column in zip(names, values.T, strict=True):
            estimates = np.interp(chosen, np.arange(1, num + 2), column, right=0)
            total[name] = total.get(name, 0.0) + float(np.sum(estimates))
    return {name: value / len(ranks) for name, value in total.items()}


# On one thread: where other programs have the cores, BLAS's threads wait for one another, and a
# system takes a quarter of a second, not 7 ms. There is one for each size of the ranking.
@functools.cache
@threadpool_limits.wrap(limits=1, user_api="blas")
def _corrected_values(ks, num_items, num_negatives, variance_weight):
    """Returns names of metrics, and their values f64 [sampled ranks, metrics]."""
    true_ranks, weights = _log_spaced_ranks(num_items)
    chance = _chance_of_sampled_rank(true_ranks, num_items, num_negatives)  # [true, sampled]
    weighted = chance * weights[:, None]
    gains = _gains(true_ranks, ks)
    squares = (1 - variance_weight) * chance.T @ weighted
    squares += variance_weight * np.diag(weighted.sum(axis=0))
    exact = np.stack(list(gains.values()), axis=1)
    return list(gains), np.linalg.solve(squares, weighted.T @ exact)


def _log_spaced_ranks(num_items, num_points=4000):
    """Returns every small rank and ever fewer large ones, and how much of log rank each covers."""
    ranks = np.unique(np.geomspace(1, num_items, num_points).round().astype(np.int64))
    edges = np.concatenate([[0.5], (ranks[:-1] + ranks[1:]) / 2, [num_items + 0.5]])
    return ranks, np.diff(np.log(edges))


def _chance_of_sampled_rank(true_ranks, num_items, num_negatives):
    """Returns hypergeometric probabilities, f64 [true ranks, num_negatives + 1]."""
    log_factorial = np.concatenate([[0], np.cumsum(np.log(np.arange(1, num_items)))])

    def log_choose(n, k):
        possible = np.clip(k, 0, n)
        value = log_factorial[n] - log_factorial[possible] - log_factorial[n - possible]
        return np.where(k == possible, value, -np.inf)

    above = true_ranks[:, None] - 1  # items above the target
    drawn = np.arange(num_negatives + 1)  # how many of them are drawn
    return np.exp(
        log_choose(above, drawn)
        + log_choose(num_items - 1 - above, num_negatives - drawn)
        - log_choose(num_items - 1, num_negatives)
    )
