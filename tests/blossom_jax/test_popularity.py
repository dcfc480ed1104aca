import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blossom_jax import negatives, sharding
from blossom_jax.data.evaluation_batches import evaluation_batches
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.split import leave_one_out
from blossom_jax.evaluate import Evaluator
from blossom_jax.popularity import item_counts, popularity_ranks

NUM_ITEMS = 25


def log(lengths=(2, 3, 4, 9, 30, 70, 12, 1, 5)):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.random.default_rng(0).zipf(1.5, offsets[-1]) % NUM_ITEMS + 1
    return Interactions(
        name="toy",
        items=items.astype(np.int32),
        times=None,
        offsets=offsets.astype(np.int64),
        user_ids=np.arange(len(lengths)).astype(str),
        item_ids=np.arange(NUM_ITEMS).astype(str),
        card={},
    )


def test_counts_come_from_training_alone():
    interactions = log()
    split = leave_one_out(interactions)
    expected = np.zeros(NUM_ITEMS + 1, int)
    for begin, end in zip(interactions.offsets, split.train_end, strict=False):
        for item in interactions.items[begin:end]:
            expected[item] += 1
    np.testing.assert_array_equal(item_counts(interactions, split), expected)
    assert expected.sum() == len(interactions.items) - 2 * len(split.test.users)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_ranks_are_those_of_a_model_that_scores_by_counts(part):
    interactions = log()
    split = leave_one_out(interactions)
    targets = getattr(split, part)
    counts = item_counts(interactions, split)
    drawn = negatives.draw(interactions, targets, counts, num=8)
    assert not drawn.items.all()  # some users have fewer than 8 others
    counts = jnp.asarray(counts, jnp.float32)
    evaluator = Evaluator(
        lambda counts, batch: (jnp.ones((len(batch["target"]), 1)), counts[:, None]),
        num_items=NUM_ITEMS,
        mesh=sharding.make_mesh(1, 1, devices=jax.devices()[:1]),
    )
    batches = evaluation_batches(interactions, targets, max_length=16, batch_users=4)
    expected = evaluator(counts, batches, drawn, with_coverage=True)
    found = popularity_ranks(interactions, split, targets, drawn, coverage_ks=(1, 20))
    assert found.num_items == NUM_ITEMS and found.num_negatives == 8
    np.testing.assert_array_equal(found.full, expected.full)
    np.testing.assert_array_equal(found.full_keep, expected.full_keep)
    assert found.sampled.keys() == expected.sampled.keys()
    for protocol, sampled in found.sampled.items():
        np.testing.assert_array_equal(sampled, expected.sampled[protocol])
    assert found.best_places.keys() == expected.best_places.keys() == {"full", "full_keep"}
    for protocol, best in expected.best_places.items():
        np.testing.assert_array_equal(found.best_places[protocol], best)
    assert np.isinf(found.full).any() and np.isfinite(found.full).any()
    assert len(np.unique(counts)) < NUM_ITEMS  # some tie
