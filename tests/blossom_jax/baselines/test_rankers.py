"""Rankings that learn nothing, against loops over users and items."""

import numpy as np
import pytest

from blossom_jax.baselines.item_knn import item_neighbours
from blossom_jax.baselines.rankers import DECAY, make_rankers
from blossom_jax.data.evaluation_batches import evaluation_batches
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.split import leave_one_out

NUM_ITEMS, DAY = 12, 24 * 3600
LENGTHS = (2, 3, 9, 30, 12, 1, 5)


def log(times=True):
    rng, offsets = np.random.default_rng(0), np.concatenate([[0], np.cumsum(LENGTHS)])
    items = rng.zipf(1.6, offsets[-1]) % NUM_ITEMS + 1
    when = np.concatenate([np.sort(rng.integers(0, 40 * DAY, n)) for n in LENGTHS])
    return Interactions(
        name="toy",
        items=items.astype(np.int32),
        times=when if times else None,
        offsets=offsets.astype(np.int64),
        user_ids=np.arange(len(LENGTHS)).astype(str),
        item_ids=np.arange(NUM_ITEMS).astype(str),
        card={},
    )


def trained(interactions, split):
    begins = interactions.offsets[:-1]
    return [interactions.items[a:b] for a, b in zip(begins, split.train_end, strict=True)]


def cosine(interactions, split):
    users = np.zeros((len(LENGTHS), NUM_ITEMS + 1))
    for row, items in zip(users, trained(interactions, split), strict=True):
        row[items] = 1
    shared = users.T @ users
    norm = np.sqrt(np.maximum(np.diag(shared), 1))
    np.fill_diagonal(shared, 0)
    return shared / norm[:, None] / norm


def scores_of(name, interactions):
    """Yields (user, end of the history, scores of the ranker) for every test question."""
    split = leave_one_out(interactions)
    ranker = make_rankers(interactions, split)[name]
    for batch in evaluation_batches(interactions, split.test, max_length=16, batch_users=4):
        scores = np.asarray(ranker.score(ranker.params, ranker.extend(split.test, batch)))
        for user, values in zip(batch["history"], scores, strict=True):
            if user >= 0:
                yield split.test.users[user], split.test.target[user], values


@pytest.mark.parametrize(("name", "decay"), [("item_knn", DECAY), ("item_knn_last", 0.0)])
def test_neighbours_of_the_history_are_scored_by_cosine(name, decay):
    interactions = log()
    similarity = cosine(interactions, leave_one_out(interactions))
    for user, end, scores in scores_of(name, interactions):
        history = interactions.items[max(interactions.offsets[user], end - 16) : end]
        wanted = sum(decay**age * similarity[item] for age, item in enumerate(history[::-1]))
        np.testing.assert_allclose(scores[1:], wanted[1:], atol=1e-6)


def test_only_the_nearest_are_kept():
    interactions = log()
    split = leave_one_out(interactions)
    found = item_neighbours(interactions, split, num_neighbours=3)
    wanted = -np.sort(-cosine(interactions, split), axis=1)[:, :3]
    np.testing.assert_allclose(found.similarity, wanted, atol=1e-6)
    assert not found.items[found.similarity == 0].any()


def test_the_own_history_is_ranked_by_recency_or_by_frequency():
    interactions = log()
    for user, end, scores in scores_of("last_items", interactions):
        history = interactions.items[interactions.offsets[user] : end]
        newest_first = list(dict.fromkeys(history[::-1].tolist()))
        order = 1 + np.argsort(-scores[1:], kind="stable")
        assert order[: len(newest_first)].tolist() == newest_first
        assert not scores[np.setdiff1d(np.arange(1, NUM_ITEMS + 1), history)].any()
    for user, end, scores in scores_of("own_most_frequent", interactions):
        history = interactions.items[interactions.offsets[user] : end]
        np.testing.assert_array_equal(scores[1:], np.bincount(history, minlength=NUM_ITEMS + 1)[1:])


def test_recent_popularity_counts_training_in_the_week_before_the_question():
    interactions = log()
    split = leave_one_out(interactions)
    everything = np.concatenate(trained(interactions, split))
    for _, end, scores in scores_of("recent_popularity", interactions):
        wanted, now = np.zeros(NUM_ITEMS + 1), interactions.times[end]
        for begin, train_end in zip(interactions.offsets, split.train_end, strict=False):
            for event in range(begin, train_end):
                if now - 7 * DAY <= interactions.times[event] < now:
                    wanted[interactions.items[event]] += 1
        all_days = np.bincount(everything, minlength=NUM_ITEMS + 1) / (len(everything) + 1)
        np.testing.assert_allclose(scores, wanted + all_days, atol=1e-6)


def test_without_times_nothing_is_recent():
    interactions = log(times=False)
    split = leave_one_out(interactions)
    assert "recent_popularity" not in make_rankers(interactions, split)
