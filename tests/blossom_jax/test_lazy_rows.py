"""Lazy Adam of the item table against the dense step and against its formula, and what it holds."""

import functools

import jax
import numpy as np
import optax
import pytest

from blossom_jax import sharding
from blossom_jax.losses import LossConfig, make_loss
from blossom_jax.model import ModelConfig, model_maker
from blossom_jax.optimizer import make_optimizer
from blossom_jax.together import vmap_step
from blossom_jax.train_step import abstract_params, abstract_state, init_state, make_train_step

NUM_ITEMS, ROWS = 40, 128  # the table has surplus rows
LEARNING_RATE, WEIGHT_DECAY, B1, B2 = 1e-2, 0.1, 0.9, 0.98
CONFIG = ModelConfig(  # what compiles fastest
    block="plain",
    attention="dense",
    positions="none",
    hidden_size=16,
    inner_size=16,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    max_length=16,
    dropout=0.1,
    embedding_dropout=0.1,
)
LOSS = LossConfig("sampled_softmax", num_negatives=5)
SEED = np.uint32(7)
# It takes half the time to compile, and runs as fast.
OPTIONS = {"xla_backend_optimization_level": 0}


def make_batch(first, last):
    """Returns two rows of two histories, which hold exactly the items from first to last."""
    items = first + np.arange(2 * 23, dtype=np.int32).reshape(2, 23) % (last - first + 1)
    positions = np.tile(np.concatenate([np.arange(10), np.arange(12), [-1, -1]]), (2, 1))
    real = positions >= 0
    padded = np.pad(items, ((0, 0), (0, 2)))
    return {
        "item_ids": np.where(real, padded[:, :-1], 0),
        "targets": np.where(real, padded[:, 1:], 0),
        "positions": positions.astype(np.int32),
    }


OPTIMIZER = make_optimizer(
    learning_rate=LEARNING_RATE,
    warmup_steps=0,
    schedule="constant",
    total_steps=100,
    weight_decay=WEIGHT_DECAY,
    b1=B1,
    b2=B2,
    clip_norm=0.1,  # less than any gradient here
    accumulate_steps=1,
)


@functools.cache
def prepare(lazy=True, num_items=NUM_ITEMS, data=1, loss=LOSS):
    """Returns the step, jitted; the state as it will be; and the mesh."""
    mesh = sharding.make_mesh(data, devices=jax.devices()[:data])
    make_model = model_maker(CONFIG, num_items, 0)
    graphdef, _ = abstract_params(make_model, mesh)
    like = abstract_state(make_model, OPTIMIZER, mesh)
    loss = make_loss(loss, num_items=num_items, mesh=mesh)
    return make_train_step(graphdef, OPTIMIZER, mesh, like, loss, lazy_items=lazy), like, mesh


@functools.cache
def initial():
    return init_state(model_maker(CONFIG, NUM_ITEMS, 0), OPTIMIZER, prepare()[1])


@functools.cache
def compiled(lazy=True, num_items=NUM_ITEMS, data=1):
    step, like, mesh = prepare(lazy, num_items, data)
    return step.lower(like, *placed(mesh, make_batch(1, 40))).compile(OPTIONS)


def placed(mesh, batch):
    seed = jax.device_put(SEED, sharding.replicated(mesh))
    return sharding.put_batch(batch, mesh), seed


def fresh(data=1):
    """Returns the initial state in arrays of its own, as the step consumes them."""
    like = prepare(data=data)[1]
    return jax.tree.map(lambda x, to: jax.device_put(np.asarray(x), to.sharding), initial(), like)


def train(state, *batches, **which):
    metrics = None
    for batch in batches:
        state, metrics = compiled(**which)(state, *placed(prepare(**which)[2], batch))
    return state, metrics


def table_and_moments(state):
    """Returns the item table and its two moments, in float64."""
    moments = (optax.tree.get(state["opt_state"], name) for name in ("mu", "nu"))
    trees = state["params"], *moments
    tables = (tree["item_embedding"]["embedding"][...] for tree in trees)
    return [np.asarray(table, np.float64) for table in tables]


def touched(step, batch):
    """Returns which rows a step reads: the padding, the items, and what is drawn."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), step), 2**32 - 1)
    drawn = make_loss(LOSS, num_items=NUM_ITEMS).draw(key, 48).items
    items = np.concatenate([batch["item_ids"], batch["targets"], drawn], axis=None)
    return np.isin(np.arange(ROWS), items)


def assert_close(found, expected, tolerance=1e-6):
    for a, b in zip(found, expected, strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def test_where_all_items_are_touched_it_is_the_dense_step():
    batch = make_batch(1, 40)
    lazy, lazy_metrics = train(fresh(), batch)
    dense, dense_metrics = train(fresh(), batch, lazy=False)
    items = slice(0, NUM_ITEMS + 1)
    rows = [[x[items] for x in table_and_moments(state)] for state in (lazy, dense)]
    assert_close(*rows)
    surplus = (slice(NUM_ITEMS + 1, None),)
    for ours, initial in zip(table_and_moments(lazy), table_and_moments(fresh()), strict=True):
        np.testing.assert_array_equal(ours[surplus], initial[surplus])
    others = [jax.tree.leaves(nothing_of_the_table(state)) for state in (lazy, dense)]
    assert_close(*others)
    for name, value in dense_metrics.items():
        np.testing.assert_allclose(lazy_metrics[name], value, rtol=1e-6)


def nothing_of_the_table(state):
    return jax.tree_util.tree_map_with_path(
        lambda path, x: None if sharding.is_item_table(path) else np.asarray(x), state
    )


def test_rows_that_are_not_touched_stay_to_the_bit_as_do_their_moments():
    before, _ = train(fresh(), make_batch(1, 40))  # so that they have moments
    kept = table_and_moments(before)
    batch = make_batch(1, 10)
    after, _ = train(before, batch)
    rows = touched(1, batch)
    assert 11 < rows.sum() < NUM_ITEMS
    for old, new in zip(kept, table_and_moments(after), strict=True):
        np.testing.assert_array_equal(old[~rows], new[~rows])
        assert (old[rows][1:] != new[rows][1:]).any(axis=1).all()


def test_three_steps_are_those_of_the_formula():
    state = fresh()
    table, mean, square = table_and_moments(state)
    for step, batch in enumerate((make_batch(1, 10), make_batch(8, 20), make_batch(1, 5))):
        # From moments of 0 the dense step makes the mean what the gradient is, but for a factor.
        dense = fresh()
        dense["params"], dense["step"] = jax.tree.map(
            lambda x: x.copy(), (state["params"], state["step"])
        )
        gradient = table_and_moments(train(dense, batch, lazy=False)[0])[1] / (1 - B1)
        rows = touched(step, batch)
        assert not gradient[~rows].any()
        mean[rows] = B1 * mean[rows] + (1 - B1) * gradient[rows]
        square[rows] = B2 * square[rows] + (1 - B2) * gradient[rows] ** 2
        scaled_mean, scaled_square = mean / (1 - B1 ** (step + 1)), square / (1 - B2 ** (step + 1))
        change = scaled_mean / (np.sqrt(scaled_square) + 1e-8) + WEIGHT_DECAY * table
        table[rows] -= LEARNING_RATE * change[rows]
        state, _ = train(state, batch)
        assert_close(table_and_moments(state), (table, mean, square), 1e-5)


def test_a_resumed_run_is_the_same_to_the_bit():
    batches = [make_batch(1, 10), make_batch(8, 20), make_batch(1, 5), make_batch(3, 30)]
    whole, _ = train(fresh(), *batches)
    half, _ = train(fresh(), *batches[:2])
    resumed = jax.tree.map(lambda x: jax.device_put(np.asarray(x), x.sharding), half)
    resumed, _ = train(resumed, *batches[2:])
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_learns():
    state, losses = fresh(), []
    for _ in range(80):
        state, metrics = train(state, make_batch(1, 30))
        losses.append(metrics["loss_sum"] / metrics["count"])
    assert losses[0] == pytest.approx(np.log(NUM_ITEMS), abs=0.1)
    assert np.mean(losses[-40:]) < 0.6 * losses[0]  # so few samples are noisy


def test_two_devices_give_the_numbers_of_one():
    batches = make_batch(1, 10), make_batch(8, 20)
    found, expected = (train(fresh(data=n), *batches, data=n)[0] for n in (2, 1))
    assert_close(table_and_moments(found), table_and_moments(expected), 1e-5)


def test_two_seeds_together_give_the_numbers_of_each_alone():
    seeds, batches = np.array([7, 7], np.uint32), (make_batch(1, 10), make_batch(8, 20))
    stacked = jax.tree.map(lambda x: np.stack([x, x]), fresh())
    batch = jax.tree.map(lambda *x: np.stack(x), *batches)
    step = vmap_step(prepare()[0]).lower(stacked, batch, seeds, None).compile(OPTIONS)
    together, _ = step(stacked, batch, seeds, None)
    for k, each in enumerate(batches):
        found = table_and_moments(jax.tree.map(lambda x, k=k: x[k], together))
        assert_close(found, table_and_moments(train(fresh(), each)[0]), 1e-5)


def test_no_temporary_grows_with_the_catalogue():
    small, large = (
        compiled(num_items=n).memory_analysis().temp_size_in_bytes for n in (NUM_ITEMS, 20_000)
    )
    assert large <= small + 1000 < 20_000 * CONFIG.hidden_size * 4


def test_a_loss_over_all_items_is_refused():
    step, like, mesh = prepare(loss=LossConfig())
    with pytest.raises(ValueError, match="samples"):
        step.lower(like, *placed(mesh, make_batch(1, 40)))
