import numpy as np
import pytest
from scipy import stats

from blossom_jax import metrics, statistics


def test_mean_interval_is_students():
    mean, half = statistics.mean_interval([1, 2, 3, 4, 5])
    assert mean == 3 and half == pytest.approx(2.776445105 * np.sqrt(2.5 / 5))
    mean, half = statistics.mean_interval([0.25])
    assert mean == 0.25 and np.isnan(half)


def test_holm_gives_what_r_gives():
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1, 1]
    assert statistics.holm([]) == []


def test_detectable_difference():
    assert statistics.detectable_difference(0.5) == pytest.approx(0.5 * 2.801585, rel=1e-6)
    assert statistics.detectable_difference(1, 5) == pytest.approx(
        stats.norm.ppf(0.995) + stats.norm.ppf(0.8)
    )


def gains(seeds, users, spread, shift=0.0, seed=0):
    """Recall-like gains: users differ by how easy they are, seeds by `spread`."""
    easy = np.random.default_rng(0).normal(-1.5, 1, users)  # the same users in every call
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (seeds, users)) + spread * rng.normal(0, 1, (seeds, 1)) + shift
    return (easy + noise > 0).astype(float)


def test_one_seed_gives_the_standard_error_of_paired_differences():
    a, b = gains(1, 3000, 0, seed=1), gains(1, 3000, 0, seed=2)
    found = statistics.paired_bootstrap(a, b)
    assert found.difference == pytest.approx(np.mean(a - b))
    expected = np.std(a - b, ddof=1) / np.sqrt(3000)
    assert found.standard_error == pytest.approx(expected, rel=0.03)
    half = stats.norm.ppf(0.975) * expected
    assert found.low == pytest.approx(found.difference - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.difference + half, abs=0.1 * half)
    z = abs(found.difference) / expected
    assert found.p_value == pytest.approx(2 * stats.norm.sf(z), abs=0.03)


def test_seeds_add_their_variance_without_bias():
    a, b = gains(3, 50_000, 0.6, seed=1), gains(4, 50_000, 0.6, seed=2)
    found = statistics.paired_bootstrap(a, b, num_samples=20_000)
    users = np.var(a.mean(0) - b.mean(0)) / 50_000
    seeds = np.var(a.mean(1), ddof=1) / 3 + np.var(b.mean(1), ddof=1) / 4
    assert seeds > 10 * users
    assert found.standard_error == pytest.approx(np.sqrt(users + seeds), rel=0.05)


def test_equal_models_and_very_different_ones():
    a = gains(2, 500, 0)
    same = statistics.paired_bootstrap(a[:1], a[:1], num_samples=100)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    apart = statistics.paired_bootstrap(gains(2, 500, 0, shift=3), a, num_samples=199)
    assert apart.low > 0.3 and apart.p_value == pytest.approx(2 / 200)


def test_the_same_resampling_every_time():
    a, b = gains(2, 500, 0, seed=1), gains(2, 500, 0, seed=2)
    first, again = (statistics.paired_bootstrap(a, b, num_samples=500) for _ in range(2))
    assert first == again


def test_gains_average_to_the_metric():
    ranks = np.array([1, 2.5, 11, np.inf])
    found = metrics.gains_from_ranks(ranks, "ndcg@10")
    assert found.mean() == pytest.approx(metrics.metrics_from_ranks(ranks, (10,))["ndcg@10"])
    with pytest.raises(ValueError, match="'hits@10'"):
        metrics.gains_from_ranks(ranks, "hits@10")
