import jax
import numpy as np
import pytest

from blossom_jax.coverage import NOWHERE, coverage, note_places


def slow_places(scores, is_user, num_items, k):
    """Sorts every ranking out in full."""
    best = np.full(num_items + 1, NOWHERE)
    for row in scores[is_user]:
        items = [item for item in range(1, num_items + 1) if row[item] > -np.inf]
        for place, item in enumerate(sorted(items, key=lambda item: (-row[item], item))[:k]):
            best[item] = min(best[item], place)
    return best


@pytest.mark.parametrize(("levels", "k"), [(4, 20), (10_000, 20), (10_000, 1), (3, 60)])
def test_places_over_several_batches(levels, k):
    rng = np.random.default_rng(0)
    num_items = 60
    best = np.full(num_items + 1, NOWHERE, np.int32)
    batches, users = [], []
    for _ in range(3):
        scores = rng.integers(0, levels, (4, num_items + 5)).astype(np.float32)
        scores[:, 30:] -= levels  # half of the catalogue is hardly recommended
        scores[rng.random(scores.shape) < 0.3] = np.nan
        scores[0, : num_items - 5] = -np.inf  # fewer items than places
        scores[:, [0, *range(num_items + 1, num_items + 5)]] = 99_999  # no items
        batches.append(scores)
        users.append(rng.random(4) < 0.8)
        best = jax.jit(note_places, static_argnames="k")(best, scores, users[-1], k=k)
    expected = slow_places(np.concatenate(batches), np.concatenate(users), num_items, k)
    np.testing.assert_array_equal(best, expected)
    assert best[0] == NOWHERE


def test_coverage_by_hand():
    best = np.array([NOWHERE, 0, 4, 5, NOWHERE], np.int32)
    assert coverage(best, (1, 5, 6)) == {"coverage@1": 0.25, "coverage@5": 0.5, "coverage@6": 0.75}
