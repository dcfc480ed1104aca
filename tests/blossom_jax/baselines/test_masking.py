import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blossom_jax.baselines.masking import LAST_ONLY, MASK, append_mask, hide_events

LENGTHS = (10, 1, 7)


def rows(num_rows=2000):
    positions = np.concatenate([np.arange(n) for n in LENGTHS] + [[-1, -1]])
    positions = jnp.asarray(np.tile(positions, (num_rows, 1)), jnp.int32)
    items = jnp.where(positions >= 0, jnp.arange(positions.shape[1]) + 1, 0)
    return items, positions


@pytest.mark.parametrize("probability", [0.2, 0.6])
def test_events_are_hidden_as_often_as_asked_and_become_the_targets(probability):
    items, positions = rows()
    hidden, targets = jax.jit(hide_events, static_argnames="probability")(
        items, positions, jax.random.key(0), probability=probability
    )
    is_hidden = np.asarray((hidden == MASK) & (positions >= 0))
    np.testing.assert_array_equal(targets, np.where(is_hidden, items, 0))
    np.testing.assert_array_equal(np.where(is_hidden, items, hidden), items)
    share = is_hidden.mean(axis=0)
    last = np.isin(np.arange(len(share)), np.cumsum(LENGTHS) - 1)
    at_random = (1 - LAST_ONLY) * probability
    np.testing.assert_allclose(share[~last][:-2], at_random, atol=0.05)
    np.testing.assert_allclose(share[last], at_random + LAST_ONLY, atol=0.05)
    assert not is_hidden[:, -2:].any()


def test_what_is_hidden_depends_on_the_key_and_differs_between_histories():
    items, positions = rows(200)
    first, again, other = (
        hide_events(items, positions, jax.random.key(seed), probability=0.5)[1]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(np.asarray(first[:, :10] > 0), axis=0)) > 50


def test_a_mask_is_appended_to_each_history():
    items = jnp.asarray([[5, 6, 0, 4], [7, 8, 9, 3], [0, 0, 0, 0]])
    positions = jnp.asarray([[0, 1, -1, 0], [0, 1, 2, 3], [-1, -1, -1, -1]])
    found, places, last = append_mask(items, positions, jnp.array([1, 3, 7]))
    wanted = [[5, 6, MASK, 4, MASK], [7, 8, 9, 3, MASK], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(places, [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [-1, -1, -1, -1, -1]])
    np.testing.assert_array_equal(last, [2, 4, 9])
