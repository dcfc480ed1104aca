import numpy as np
import pytest

from blossom_jax import metrics
from blossom_jax.buckets import by_length, by_popularity, history_lengths
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.split import leave_one_out
from blossom_jax.protocol_metrics import Ranks

NUM_USERS = 200


@pytest.fixture
def ranks():
    rng = np.random.default_rng(0)
    full, full_keep = rng.integers(1, 40, (2, NUM_USERS)).astype(np.float64)
    full[::7] = np.inf
    best = {"full": np.zeros(101, np.int32)}
    sampled = {"uni11": rng.integers(1, 12, NUM_USERS).astype(float)}
    return Ranks(full, full_keep, sampled, 100, 11, np.zeros(NUM_USERS, int), best)


def assert_buckets(buckets, ends, values, name, ranks):
    """Compares every bucket with the users whose value lies in (low, high]."""
    assert sum(bucket["num_users"] for bucket in buckets) == NUM_USERS
    for low, high, bucket in zip(ends[:-1], ends[1:], buckets, strict=True):
        inside = (values > low) & (values <= high)
        assert bucket["num_users"] == inside.sum() > 0
        assert bucket[f"min_{name}"] == values[inside].min()
        assert bucket[f"max_{name}"] == values[inside].max()
        assert bucket["full/mrr@20"] == metrics.metrics_from_ranks(ranks.full[inside])["mrr@20"]
        assert not any("coverage" in metric for metric in bucket)


def test_by_length_ends_a_bucket_where_attention_begins_to_leave_out(ranks):
    lengths = np.random.default_rng(1).integers(2, 150, NUM_USERS)
    buckets = by_length(ranks, lengths, dense_length=12)
    assert_buckets(buckets, [0, 5, 10, 12, 20, 40, 80, 160], lengths, "length", ranks)


def test_by_popularity_keeps_targets_that_training_never_saw_apart(ranks):
    counts = np.random.default_rng(1).choice([0, 1, 5, 6, 300, 5000], NUM_USERS)
    buckets = by_popularity(ranks, counts)
    assert_buckets(buckets, [-1, 0, 5, 10, 320, 10**9], counts, "count", ranks)


def test_empty_buckets_are_left_out(ranks):
    (only,) = by_popularity(ranks, np.full(NUM_USERS, 7), ks=(3,))
    assert (only["min_count"], only["max_count"]) == (7, 7)
    assert only["full/recall@3"] == np.mean(ranks.full <= 3)


def test_history_lengths_count_what_the_model_does_not_see():
    offsets = np.array([0, 3, 8, 300])
    items = np.ones(300, np.int32)
    names = np.arange(3).astype(str)
    log = Interactions("toy", items, None, offsets, names, names[:1], {})
    assert history_lengths(log, leave_one_out(log).test).tolist() == [2, 4, 291]
