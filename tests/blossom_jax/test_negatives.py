import collections

import numpy as np
import pytest

from blossom_jax import metrics, negatives
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.split import Targets, leave_one_out
from blossom_jax.popularity import item_counts


def log(lengths, num_items, seed=0):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.random.default_rng(seed).zipf(1.3, offsets[-1]) % num_items + 1
    return Interactions(
        name="toy",
        items=items.astype(np.int32),
        times=None,
        offsets=offsets.astype(np.int64),
        user_ids=np.arange(len(lengths)).astype(str),
        item_ids=np.arange(num_items).astype(str),
        card={},
    )


def draw(interactions, num=10, seed=3):
    split = leave_one_out(interactions)
    counts = item_counts(interactions, split)
    return split.test, counts, negatives.draw(interactions, split.test, counts, num=num, seed=seed)


@pytest.mark.parametrize("num_items", [15, 60, 500])
def test_each_rule_is_kept(num_items):
    interactions = log([3, 5, 9, 30, 200, 4], num_items)
    targets, counts, drawn = draw(interactions)
    assert drawn.names == ("uni10", "uni10_unseen", "pop10", "pop10_unseen")
    assert drawn.items.shape == (6, 4, 10)
    for user, end, rows, num_seen in zip(*targets, drawn.items, drawn.num_seen, strict=True):
        target = interactions.items[end]
        seen = set(interactions.items[interactions.offsets[user] : end]) - {target}
        assert num_seen == len(seen)
        others = set(range(1, num_items + 1)) - {target}
        popular = {item for item in others if counts[item]}
        for row, pool in zip(rows, (others, others - seen, popular, popular - seen), strict=True):
            found = row[row > 0]
            assert len(found) == len(set(found)) == min(10, len(pool))
            assert set(found) <= pool
            assert not row[len(found) :].any()  # what there are not stands at the end


def test_the_first_rule_draws_what_it_always_drew():
    interactions = log([20] * 30, 200)
    targets, _, drawn = draw(interactions)
    target = interactions.items[targets.target]
    expected = metrics.draw_negatives(target, 200, num=10, seed=3)
    np.testing.assert_array_equal(drawn.items[:, 0], expected)


def test_the_same_arguments_draw_the_same():
    interactions = log([20] * 30, 200)
    first, again, other = (draw(interactions, seed=seed)[2].items for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.2


@pytest.mark.parametrize("all_at_once", [True, False])
def test_popular_items_are_drawn_as_often_as_their_counts_say(monkeypatch, all_at_once):
    monkeypatch.setattr(negatives, "_ROUNDS", 4 if all_at_once else 0)
    num_users, weights = 20_000 if all_at_once else 4000, np.array([0, 8, 4, 2, 0, 1, 1])
    rng = np.random.default_rng(0)
    excluded = np.arange(num_users) * 7 + 2  # item 2, of every user
    drawn = negatives._draw_weighted(rng, weights, excluded, num_users, 2)
    chance = {item: weights[item] / 12 for item in (1, 3, 5, 6)}
    found = collections.Counter(map(tuple, drawn.tolist()))
    assert set(found) == {(a, b) for a in chance for b in chance if a != b}
    for (a, b), count in found.items():
        expected = num_users * chance[a] * chance[b] / (1 - chance[a])
        assert abs(count - expected) < 5 * np.sqrt(expected)


def test_an_uncommon_user_who_has_seen_nearly_all_gets_the_rest():
    interactions = log([1000, 5], 40)
    targets = Targets(np.array([0, 1]), interactions.offsets[1:] - 1)
    counts = np.bincount(interactions.items, minlength=41)
    drawn = negatives.draw(interactions, targets, counts, num=20)
    target, seen = interactions.items[999], set(interactions.items[:999])
    rest = set(range(1, 41)) - seen - {target}
    assert set(drawn.items[0, 1]) - {0} == rest and len(rest) < 20
