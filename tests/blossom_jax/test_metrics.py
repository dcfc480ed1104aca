import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from blossom_jax import metrics

KS = (1, 5, 10, 20)


def slow_metric(name, ranks, k):
    gain = {
        "recall": lambda rank: 1.0,
        "ndcg": lambda rank: 1 / np.log2(1 + rank),
        "mrr": lambda rank: 1 / rank,
    }[name]
    return sum(gain(rank) for rank in ranks if rank <= k) / len(ranks)


def test_metrics_match_ranx_without_ties(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # ranx would compile for half a minute
    import ranx

    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.linspace(0, 1, 51, dtype=np.float32), (40, 1)), axis=1)
    target = rng.integers(1, 51, 40)
    own = np.take_along_axis(scores, target[:, None], axis=1)
    ranks = 1 + (scores[:, 1:] > own).sum(axis=1)
    found = metrics.metrics_from_ranks(np.asarray(ranks, np.float64), KS)

    qrels = ranx.Qrels({f"u{u}": {f"i{t}": 1} for u, t in enumerate(target)})
    run = ranx.Run(
        {f"u{u}": {f"i{i}": float(s[i]) for i in range(1, 51)} for u, s in enumerate(scores)}
    )
    names = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in KS]
    expected = ranx.evaluate(qrels, run, names)
    assert found.keys() == expected.keys()
    for name in names:
        assert found[name] == pytest.approx(expected[name], rel=1e-12)


def test_metrics_of_half_ranks_and_misses():
    ranks = np.array([1, 1.5, 5, 5.5, 10.5, 20, np.inf])
    found = metrics.metrics_from_ranks(ranks, KS)
    for name in ("recall", "ndcg", "mrr"):
        for k in KS:
            assert found[f"{name}@{k}"] == pytest.approx(slow_metric(name, ranks, k), rel=1e-12)
    assert all(type(value) is float for value in found.values())
    with pytest.raises(ValueError, match=r"ranks.shape=\(0,\)"):
        metrics.metrics_from_ranks(np.array([]))


@pytest.mark.parametrize(("num_items", "num"), [(1000, 100), (101, 100), (6, 3), (2, 1)])
def test_negatives_are_others_without_repetition(num_items, num):
    targets = np.random.default_rng(0).integers(1, num_items + 1, 50)
    negatives = metrics.draw_negatives(targets, num_items, num, seed=3)
    assert negatives.shape == (50, num)
    assert negatives.min() >= 1 and negatives.max() <= num_items
    for target, row in zip(targets, negatives, strict=True):
        assert len(set(row)) == num and target not in row
    np.testing.assert_array_equal(
        negatives, metrics.draw_negatives(targets, num_items, num, seed=3)
    )


def test_negatives_are_uniform():
    negatives = metrics.draw_negatives(np.full(20_000, 4), num_items=7, num=3, seed=0)
    # 20 sets of three out of six others, each 1,000 times; their standard deviation is 31.
    codes, counts = np.unique(np.sort(negatives, axis=1) @ [100, 10, 1], return_counts=True)
    assert len(codes) == 20
    assert np.all(np.abs(counts - 1000) < 5 * 31)


def test_correction_is_exact_when_nothing_is_left_to_chance():
    ranks = np.array([1, 2, 2.5, 7, 30, np.inf])
    exact = metrics.metrics_from_ranks(ranks[[0, 1, 3, 4, 5]], KS)
    found = metrics.corrected_metrics_from_ranks(
        ranks[[0, 1, 3, 4, 5]], KS, num_items=31, num_negatives=30
    )
    assert found == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("concentration", [0.2, 0.35, 1.0])
def test_correction_comes_near_the_full_metrics(concentration):
    num_items, num_negatives = 2000, 100
    rng = np.random.default_rng(0)
    # P(rank <= r) = (r / num_items) ** concentration.
    ranks = np.ceil(num_items * rng.random(50_000) ** (1 / concentration)).clip(1).astype(int)
    sampled = 1.0 + rng.hypergeometric(ranks - 1, num_items - ranks, num_negatives)
    corrected = metrics.corrected_metrics_from_ranks(
        sampled, KS, num_items=num_items, num_negatives=num_negatives
    )
    exact = metrics.metrics_from_ranks(ranks.astype(float), KS)
    naive = metrics.metrics_from_ranks(sampled, KS)
    for name in ("recall@10", "ndcg@10", "recall@20"):
        assert abs(corrected[name] - exact[name]) < 0.2 * exact[name] + 2e-3
        assert abs(naive[name] - exact[name]) > 0.5 * exact[name]


def test_correction_knows_how_many_items_each_user_draws_from():
    ranks, excluded = np.array([1, 2, 7, 3, 101.0]), np.array([0, 150, 1999, 2000, 1500])
    found = metrics.corrected_metrics_from_ranks(
        ranks, KS, num_items=10_000, num_negatives=100, num_excluded=excluded
    )
    alone = [
        metrics.corrected_metrics_from_ranks(
            ranks[i : i + 1], KS, num_items=10_000 - seen, num_negatives=100
        )
        for i, seen in enumerate([0, 100, 1900, 2000, 1500])  # down to whole hundredths
    ]
    for name, value in found.items():
        assert value == pytest.approx(np.mean([one[name] for one in alone]), abs=1e-12)
    assert len({one["recall@10"] for one in alone[2:4]}) == 2


def test_correction_is_solved_by_one_thread(monkeypatch):
    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    during = []

    def solve(a, b):
        during.append(threads())
        return np.zeros_like(b)

    monkeypatch.setattr(np.linalg, "solve", solve)
    with threadpool_limits(limits=2, user_api="blas"):
        metrics._corrected_values((7,), 97, 11, 0.01)
        assert threads() == {2}
    assert during == [{1}]


def test_correction_minimises_bias_and_variance():
    num_items, num_negatives, weight = 12, 4, 0.3
    _, values = metrics._corrected_values((3,), num_items, num_negatives, weight)
    ranks, log_share = metrics._log_spaced_ranks(num_items)
    np.testing.assert_array_equal(ranks, np.arange(1, num_items + 1))
    chance = metrics._chance_of_sampled_rank(ranks, num_items, num_negatives)
    np.testing.assert_allclose(chance.sum(axis=1), 1)

    def objective(value):
        mean = chance @ value
        variance = chance @ value**2 - mean**2
        return np.sum(log_share * ((mean - (ranks <= 3)) ** 2 + weight * variance))

    recall = values[:, 0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert objective(recall + 1e-3 * rng.standard_normal(5)) > objective(recall)
