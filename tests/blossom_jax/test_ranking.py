"""Ranks by counting are those by sorting, whatever the chunks and the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from blossom_jax import metrics, sharding
from blossom_jax.coverage import NOWHERE, note_places
from blossom_jax.ranking import Catalogue, first_places, rank_targets

NUM_ITEMS, ROWS = 30, 40
CHUNKS = (ROWS, 7, 1)


def slow_rank(scores, target, candidates):
    """The definition, one candidate at a time."""
    if np.isnan(scores[target]):
        return np.inf
    rank = 1.0
    for item in candidates:
        if item != target:
            rank += float(scores[item] > scores[target]) + 0.5 * (scores[item] == scores[target])
    return rank


def catalogue(num_items=NUM_ITEMS, chunk=ROWS, data=1, model=1):
    mesh = sharding.make_mesh(data, model, devices=jax.devices()[: data * model])
    return Catalogue(num_items, chunk, mesh)


@functools.cache
def jitted(catalogue):
    """Ranks one user, whose scores are the table: infinities and NaN pass through the product."""

    def rank(scores, target, seen, negatives):
        one = jnp.ones((1, 1))
        return rank_targets(
            one, scores[:, None], target[None], seen[None], negatives[None], catalogue
        )

    return jax.jit(rank)


def random_case(seed, users=20, history=12):
    """Scores with many ties and some NaN and infinities; seen items and padding."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (users, ROWS)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[rng.random(scores.shape) < 0.05] = -np.inf
    scores[rng.random(scores.shape) < 0.05] = np.inf
    scores[:, [0, *range(NUM_ITEMS + 1, ROWS)]] = 9  # would win, if they were items
    target = rng.integers(1, NUM_ITEMS + 1, users)
    seen = np.stack([rng.permutation(NUM_ITEMS)[:history] for _ in range(users)])
    sets = [metrics.draw_negatives(target, NUM_ITEMS, num=10, seed=s) for s in (seed, seed + 1)]
    negatives = np.stack(sets, axis=1)
    negatives[::2, 1, 4:] = 0  # some users have fewer in the second protocol
    return scores, target, seen, negatives


@pytest.mark.parametrize("chunk", CHUNKS)
def test_every_protocol_is_what_sorting_gives(chunk):
    items = set(range(1, NUM_ITEMS + 1))
    for scores, target, seen, negatives in zip(*random_case(chunk), strict=True):
        ranks = jitted(catalogue(chunk=chunk))(scores, target, seen, negatives)
        full, full_keep, sampled, _ = (each[0] for each in ranks)
        assert full_keep == slow_rank(scores, target, items)
        assert sampled.tolist() == [slow_rank(scores, target, row[row > 0]) for row in negatives]
        new = slow_rank(scores, target, items - {*seen})
        assert full == (np.inf if target in seen else new)


@pytest.mark.parametrize(
    ("scores", "rank"),
    [
        ([9, 5, 4, 3, 2], 1),  # best
        ([9, 1, 2, 3, 4], 4),  # worst
        ([9, 7, 7, 7, 7], 2.5),  # all equal
        ([9, 7, 7, 1, 1], 1.5),  # one equal
        ([9, 1, np.nan, np.nan, np.nan], 1),  # NaN is above nothing
        ([9, np.nan, 1, 1, 1], np.inf),  # a target that is NaN is a miss
        ([9, -np.inf, -np.inf, 1, 1], 3.5),
    ],
)
def test_ranks_by_hand(scores, rank):
    others = np.array([[2, 3, 4]])
    arguments = np.array(scores, np.float32), np.int32(1), np.zeros(2, np.int32), others
    full, full_keep, sampled, _ = jitted(catalogue(num_items=4, chunk=5))(*arguments)
    assert full == full_keep == sampled == rank  # all others as negatives are the full ranking


def model_case(users=16, rows=640, width=48):
    """Scores of a model whose sums are rounded, with every item there twice."""
    rng = np.random.default_rng(0)
    hidden, half = rng.normal(size=(users, width)), rng.normal(size=(rows // 2, width))
    target, seen = rng.integers(1, rows - 9, users), rng.permutation(rows - 9)[: users * 8]
    negatives = metrics.draw_negatives(target, rows - 10, num=10)[:, None]
    arrays = hidden, np.concatenate([half, half])
    return (*(a.astype(np.float32) for a in arrays), target, seen.reshape(users, 8), negatives)


@pytest.mark.parametrize(("data", "model", "chunk"), [(1, 1, 64), (8, 1, 640), (2, 4, 50)])
def test_ranks_do_not_depend_on_chunks_and_devices(data, model, chunk):
    case = model_case()
    rank = jax.jit(rank_targets, static_argnums=5)
    expected = rank(*case, catalogue(630, 640))
    found = rank(*case, catalogue(630, chunk, data, model))
    for name in ("full", "full_keep", "sampled"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)
    assert (np.asarray(expected.full_keep) % 1 == 0.5).any()  # the other one of a pair ties


@pytest.mark.parametrize(("data", "model", "chunk"), [(1, 1, 64), (8, 1, 640), (2, 4, 50)])
@pytest.mark.parametrize("scale", [1, 100])  # exp of scores near 2,000 overflows
def test_the_loss_is_that_of_a_softmax_over_the_items(data, model, chunk, scale):
    hidden, table, target, seen, negatives = model_case()
    table[[0, *range(631, 640)]] = 9  # no items
    hidden *= scale
    rank = jax.jit(rank_targets, static_argnums=5)
    found = rank(hidden, table, target, seen, negatives, catalogue(630, chunk, data, model)).loss
    scores = np.float64(hidden) @ np.float64(table[1:631]).T
    expected = scipy.special.logsumexp(scores, axis=1) - scores[np.arange(len(target)), target - 1]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 * np.abs(scores).max())


@pytest.mark.parametrize(("chunk", "model"), [(65, 1), (7, 1), (4, 5)])
@pytest.mark.parametrize("k", [1, 20, 60])
def test_first_places_are_those_of_sorting(chunk, model, k):
    rng = np.random.default_rng(k)
    num_items, users = 60, 4
    table = rng.integers(-1, 2, (65, 3)).astype(np.float32)  # many ties
    table[[0, 61, 62, 63, 64]] = 9  # no items
    table[5] = np.nan
    hidden = rng.integers(-3, 4, (users, 3)).astype(np.float32)
    seen = rng.integers(0, num_items + 1, (users, 9))
    find = jax.jit(first_places, static_argnums=3, static_argnames="k")
    value, found = find(hidden, table, seen, catalogue(num_items, chunk, 1, model), k=k)
    for user, row in enumerate(hidden @ table.T):
        items = [i for i in range(1, num_items + 1) if i not in seen[user] and row[i] == row[i]]
        items = sorted(items, key=lambda item: (-row[item], item))[:k]
        assert found[user, : len(items)].tolist() == items
        assert np.isneginf(value[user, len(items) :]).all()


def test_best_places_over_several_batches():
    best = jnp.full(6, NOWHERE, jnp.int32)
    best = note_places(best, jnp.array([[3, 1], [2, 3]]), jnp.array([[True, True], [True, False]]))
    best = note_places(best, jnp.array([[4, 3], [5, 1]]), jnp.array([[True, True], [False, False]]))
    assert best.tolist() == [NOWHERE, 1, 0, 0, 0, NOWHERE]


def test_memory_is_bounded_by_the_chunk():
    def temporary_bytes(rows, chunk):
        shapes = (128, 16), (rows, 16), (128,), (128, 64), (128, 4, 100)
        dtypes = jnp.float32, jnp.float32, *[jnp.int32] * 3
        arrays = map(jax.ShapeDtypeStruct, shapes, dtypes)
        compiled = jax.jit(rank_targets, static_argnums=5).lower(
            *arrays, catalogue(rows - 1, chunk)
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 128 * 4096  # and as many exponentials
    assert scores < temporary_bytes(1_000_000, 4096) < 2.5 * scores
    assert temporary_bytes(1_000_000, 4096) <= 1.01 * temporary_bytes(100_000, 4096)
