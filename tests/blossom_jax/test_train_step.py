"""The training step: what moves, what stays, what it depends on, and on how many devices."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from blossom_jax import sharding
from blossom_jax.compression import is_compressor_parameter
from blossom_jax.losses import LossConfig, make_loss
from blossom_jax.model import BlossomRec, ModelConfig
from blossom_jax.optimizer import make_optimizer
from blossom_jax.train_step import abstract_params, abstract_state, init_state, make_train_step

NUM_ITEMS = 40
CONFIG = ModelConfig(
    hidden_size=16,
    inner_size=16,
    num_layers=1,
    compress_block_size=4,
    compress_stride=2,
    selection_block_size=2,
    num_selected_blocks=2,
    window=2,
    max_length=16,
    dropout=0.2,
)
LOSS = LossConfig(loss_chunk=8)


def adamw(warmup_steps=0):
    """Returns the optimizer, which leaves the compressor alone."""
    return make_optimizer(
        learning_rate=1e-2,
        warmup_steps=warmup_steps,
        schedule="constant",
        total_steps=100,
        weight_decay=0.1,
        b1=0.9,
        b2=0.98,
        clip_norm=1.0,
        accumulate_steps=1,
        frozen=is_compressor_parameter,
    )


@functools.cache
def build(data=1, model=1, config=CONFIG, loss=LOSS):
    """Returns the mesh, the step compiled for it, and a function that makes a fresh state."""
    mesh = sharding.make_mesh(data, model, devices=jax.devices()[: data * model])
    optimizer = adamw()

    def make_model():
        return BlossomRec(config, NUM_ITEMS, rngs=nnx.Rngs(0))

    graphdef, _ = abstract_params(make_model, mesh)
    like = abstract_state(make_model, optimizer, mesh)
    step = make_train_step(
        graphdef, optimizer, mesh, like, make_loss(loss, num_items=NUM_ITEMS, mesh=mesh)
    )
    seed = jax.device_put(np.uint32(0), sharding.replicated(mesh))
    # It takes half the time to compile, and runs as fast.
    options = {"xla_backend_optimization_level": 0}
    compiled = step.lower(like, make_batch(mesh), seed).compile(options)
    return mesh, compiled, lambda: init_state(make_model, optimizer, like)


def make_batch(mesh, rows=8, length=24, empty_rows=0):
    """Returns packed rows of two histories each, of random items."""
    rng = np.random.default_rng(0)
    items = rng.integers(1, NUM_ITEMS + 1, (rows, length + 1)).astype(np.int32)
    positions = np.tile(np.concatenate([np.arange(10), np.arange(12), [-1, -1]]), (rows, 1))
    positions[rows - empty_rows :] = -1
    real = positions >= 0
    batch = {
        "item_ids": np.where(real, items[:, :-1], 0),
        "targets": np.where(real, items[:, 1:], 0),
        "positions": positions.astype(np.int32),
    }
    return sharding.put_batch(batch, mesh)


def gathered(compiled):
    """Yields the shape of every array that a program gathers from devices."""
    for shapes in re.findall(r"= (\S+|\(.*?\)) all-gather(?:-start)?\(", compiled.as_text()):
        for shape in re.findall(r"\[([\d,]+)\]", shapes):
            yield tuple(map(int, shape.split(",")))


def train(num_steps, seed=0, **where):
    mesh, step, fresh = build(**where)
    state, batch = fresh(), make_batch(mesh)
    seed = jax.device_put(np.uint32(seed), sharding.replicated(mesh))
    losses = []
    for _ in range(num_steps):
        state, metrics = step(state, batch, seed)
        losses.append(float(metrics["loss_sum"]) / float(metrics["count"]))
    return state, losses


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def test_it_learns_and_counts_steps():
    state, losses = train(30)
    assert losses[0] == pytest.approx(np.log(NUM_ITEMS), abs=0.2)
    assert losses[-1] < losses[0] - 0.8
    assert int(state["step"]) == 30


def test_bf16_trains_as_f32_does_with_blocks_computed_anew():
    config = dataclasses.replace(CONFIG, dtype="bfloat16", remat="block")
    state, losses = train(100, config=config)
    assert all(np.isfinite(leaf).all() for leaf in leaves(state))
    assert {leaf.dtype.name for leaf in leaves(state["params"])} == {"float32"}
    _, exact = train(100)
    np.testing.assert_allclose(losses, exact, rtol=0.1)  # a batch of few tokens is noisy
    np.testing.assert_allclose(np.mean(losses[-20:]), np.mean(exact[-20:]), rtol=0.01)


def test_negatives_depend_on_step_and_seed_alone():
    by_samples = LossConfig("sampled_softmax", loss_chunk=8, num_negatives=5)
    mesh, step, _ = build(loss=by_samples)
    whole, losses = train(4, loss=by_samples)
    half, _ = train(2, loss=by_samples)
    resumed = jax.tree.map(lambda x: jax.device_put(np.asarray(x), x.sharding), half)
    seed = jax.device_put(np.uint32(0), sharding.replicated(mesh))
    for _ in range(2):
        resumed, _ = step(resumed, make_batch(mesh), seed)
    for a, b in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses != train(4, seed=1, loss=by_samples)[1]
    assert len(set(losses)) == 4


def test_it_repeats_to_the_bit_and_depends_on_the_seed():
    first, second, other = (leaves(train(3, seed)[0]) for seed in (0, 0, 1))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_dropout_changes_from_step_to_step():
    mesh, step, fresh = build()
    seed = jax.device_put(np.uint32(0), sharding.replicated(mesh))
    batch, losses = make_batch(mesh), []
    for number in (0, 1):
        state = fresh()
        state["step"] = state["step"] + number
        losses.append(float(step(state, batch, seed)[1]["loss_sum"]))
    assert losses[0] != losses[1]


def test_without_a_selection_gradient_the_compressor_stays_to_the_bit():
    state, _ = train(3)
    before = jax.tree_util.tree_leaves_with_path(build()[2]()["params"])
    moved = {True: [], False: []}
    for (path, old), new in zip(before, leaves(state["params"]), strict=True):
        moved[is_compressor_parameter(path)].append(not np.array_equal(old, new))
    assert len(moved[True]) == 5 and not any(moved[True])
    assert all(moved[False])


def test_metrics_are_sums_over_targets_and_the_norm_of_the_mean_loss():
    mesh, step, fresh = build()
    seed = jax.device_put(np.uint32(0), sharding.replicated(mesh))
    _, half = step(fresh(), make_batch(mesh, empty_rows=6), seed)
    assert float(half["count"]) == 2 * 22
    _, none = step(fresh(), make_batch(mesh, empty_rows=8), seed)
    assert {name: float(value) for name, value in none.items()} == {
        "loss_sum": 0.0,
        "count": 0.0,
        "grad_norm": 0.0,
    }


def test_the_state_is_donated():
    mesh, step, fresh = build()
    seed = jax.device_put(np.uint32(0), sharding.replicated(mesh))
    state = fresh()
    step(state, make_batch(mesh), seed)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state["params"]))


@pytest.mark.parametrize(("data", "model"), [(2, 1), (4, 2)])
def test_a_mesh_of_devices_gives_the_numbers_of_one(data, model):
    one, (loss,) = train(1)
    many, (sharded_loss,) = train(1, data=data, model=model)
    assert sharded_loss == pytest.approx(loss, rel=1e-6)
    # After one step Adam's first moment is the gradient, but for a factor.
    first, sharded = (leaves(optax.tree.get(state["opt_state"], "mu")) for state in (one, many))
    for a, b in zip(sharded, first, strict=True):
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)
    _, losses = train(30)
    _, sharded_losses = train(30, data=data, model=model)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-4)


@pytest.mark.parametrize(("data", "model"), [(4, 2)])
def test_no_device_has_more_of_the_table_than_its_own_rows(data, model):
    many, _ = train(1, data=data, model=model)
    table = many["params"]["item_embedding"]["embedding"][...]
    moment = optax.tree.get(many["opt_state"], "mu")["item_embedding"]["embedding"][...]
    for array in (table, moment):
        assert array.sharding.shard_shape(array.shape) == (128 // model, 16)
    shapes = list(gathered(build(data, model)[1]))
    hidden_of_one_part = 8 * 24 * 16 // data
    assert shapes and max(map(math.prod, shapes)) <= hidden_of_one_part
    assert not [shape for shape in shapes if 128 in shape]


def test_devices_that_split_nothing_but_rows_gather_nothing():
    # What is left are the parts of a softmax that has one part.
    assert all(math.prod(shape) <= 2 * 8 for shape in gathered(build(2)[1]))


def test_the_abstract_state_is_the_state():
    mesh, _, fresh = build()
    state = fresh()
    optimizer = adamw()

    def make_model():
        return BlossomRec(CONFIG, NUM_ITEMS, rngs=nnx.Rngs(0))

    like = abstract_state(make_model, optimizer, mesh)
    assert jax.tree.leaves(abstract_params(make_model, mesh)[1]) == jax.tree.leaves(like["params"])
    assert jax.tree.structure(like["params"]) == jax.tree.structure(state["params"])
    for described, real in zip(jax.tree.leaves(like), jax.tree.leaves(state), strict=True):
        assert (described.shape, described.dtype) == (real.shape, real.dtype)
        assert described.sharding == real.sharding
