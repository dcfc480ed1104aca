"""How sure a measured difference is: intervals over seeds, paired bootstrap, Holm, and power."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95  # of every interval
POWER = 0.8  # chance to notice a difference of the detectable size
_WEIGHTS_AT_ONCE = 2**22  # numbers; bounds memory


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of some runs and half the width of its 95% interval by Student's t.

    Args:
      values: One number a seed. A single one has no interval: the half width is NaN.
    """
    mean, num = float(np.mean(values)), len(values)
    if num < 2:
        return mean, float("nan")
    error = np.std(values, ddof=1) / np.sqrt(num)
    return mean, float(error * stats.t.ppf((1 + LEVEL) / 2, num - 1))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model against a reference on the same users.

    Attributes:
      difference: Of the means over users and seeds, model - reference.
      low: Lower end of its 95% interval.
      high: Upper end.
      standard_error: Of the difference.
      p_value: Two-sided, of no difference.
    """

    difference: float
    low: float
    high: float
    standard_error: float
    p_value: float


def paired_bootstrap(
    model: Float[np.ndarray, "seeds_a n"],
    reference: Float[np.ndarray, "seeds_b n"],
    *,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares two models by resampling users, the same for both, and seeds, of each its own.

    Seeds are drawn apart, since runs of equal seed but different models have nothing in common.
    Drawing K of K seeds with replacement gives their mean a variance that is (K - 1) / K of what it
    should be, much too little for few; so its deviations are scaled up by sqrt(K / (K - 1)) (Rao &
    Wu, "Resampling Inference with Complex Survey Data", 1988). Of a single seed nothing can be
    known: then the comparison is of these two runs, not of the two models. Intervals are
    percentiles; with few seeds whose spread exceeds that over users they stay a bit too narrow.

    Args:
      model: What each user adds to a metric, for each seed.
      reference: Likewise, of the same users.
      num_samples: Of the bootstrap; p-values are multiples of 2 / (num_samples + 1).
      seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    # Users with the same gains in every run are drawn together, which changes nothing but the time.
    gains, sizes = np.unique(np.concatenate([model, reference]), axis=1, return_counts=True)
    num_users, block = model.shape[1], max(1, _WEIGHTS_AT_ONCE // len(sizes))
    means = np.concatenate(
        [
            rng.multinomial(num_users, sizes / num_users, min(block, num_samples - begin)) @ gains.T
            for begin in range(0, num_samples, block)
        ]
    )
    means /= num_users  # [samples, seeds of both]
    samples = _over_seeds(rng, means[:, : len(model)]) - _over_seeds(rng, means[:, len(model) :])
    tails = min(np.sum(samples <= 0), np.sum(samples >= 0))
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Comparison(
        difference=float(model.mean() - reference.mean()),
        low=float(low),
        high=float(high),
        standard_error=float(samples.std(ddof=1)),
        p_value=float(min(1.0, 2 * (tails + 1) / (num_samples + 1))),
    )


def _over_seeds(
    rng: np.random.Generator, means: Float[np.ndarray, "samples seeds"]
) -> Float[np.ndarray, "samples"]:
    num_samples, num_seeds = means.shape
    centre = means.mean(axis=1)
    if num_seeds == 1:
        return centre
    drawn = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_samples) / num_seeds
    deviation = np.sum(drawn * means, axis=1) - centre
    return centre + np.sqrt(num_seeds / (num_seeds - 1)) * deviation


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p-values of several comparisons (Holm 1979), in their order.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than
    one before it, or larger than 1. Those below a level may be called different at that level, with
    all of them together wrong no more often than it says.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.asarray(p_values)[order] * factors).clip(max=1)
    return adjusted.tolist()


def detectable_difference(standard_error: float, num_comparisons: int = 1) -> float:
    """Returns the true difference that would be noticed with a chance of 80%.

    Args:
      standard_error: Of the measured difference.
      num_comparisons: How many are corrected for; the difference is that of the first to pass Holm.
    """
    two_sided = (1 - LEVEL) / num_comparisons / 2
    return float(standard_error * (stats.norm.ppf(1 - two_sided) + stats.norm.ppf(POWER)))
