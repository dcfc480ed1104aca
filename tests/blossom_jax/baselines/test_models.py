"""Every model by name: packing, histories kept apart, sizes, and a toy problem that each solves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from blossom_jax import sharding
from blossom_jax.baselines.mamba import CONVOLUTION, EXPANSION, STATE_SIZE
from blossom_jax.losses import LossConfig, make_loss
from blossom_jax.model import BlossomRec, ModelConfig, num_params
from blossom_jax.train_step import abstract_state, init_state, make_train_step
from configs.models import MODELS

NUM_ITEMS, MAX_LENGTH, LENGTHS = 40, 16, (9, 1, 12)
SMALL = {
    "hidden_size": 16,
    "inner_size": 24,
    "num_layers": 1,
    "compress_block_size": 4,
    "compress_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 2,
    "window": 2,
    "max_length": MAX_LENGTH,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
}


def make(name, **changes):
    own = {key.removeprefix("model."): value for key, value in MODELS[name].items()}
    return BlossomRec(ModelConfig(**SMALL | own | changes), NUM_ITEMS, rngs=nnx.Rngs(0))


def one_row_packed_and_each_history_alone():
    """Returns items and positions [4, 24]: all histories in row 0, then one in each row."""
    items, positions = np.zeros((4, 24), np.int32), np.full((4, 24), -1, np.int32)
    begin = 0
    for row, n in enumerate(LENGTHS, start=1):
        for where in (0, slice(begin, begin + n)), (row, slice(0, n)):
            items[where], positions[where] = np.arange(begin, begin + n) + 1, np.arange(n)
        begin += n
    return jnp.asarray(items), jnp.asarray(positions)


@functools.cache
def encoded(name):
    """Returns hidden states of the rows above, and what the middle of row 0's last history owes.

    That is the gradient with respect to the item table; each item stands in one history.
    """
    graphdef, params = nnx.split(make(name))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) / 4, x.dtype), params)
    items, positions = one_row_packed_and_each_history_alone()

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        hidden = nnx.merge(graphdef, params)(items, positions)
        return jnp.sum(hidden[0, 16] * jnp.arange(16)), hidden

    (_, hidden), grads = run(params)
    return np.asarray(hidden), np.asarray(grads["item_embedding"]["embedding"][...])


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_row_gives_what_each_history_gives_alone(name):
    hidden, _ = encoded(name)
    begins = np.cumsum((0, *LENGTHS))
    for row, (begin, n) in enumerate(zip(begins, LENGTHS, strict=False), start=1):
        alone = hidden[row, :n]
        assert np.linalg.norm(hidden[0, begin : begin + n] - alone) < 1e-5 * np.linalg.norm(alone)
    assert np.isfinite(hidden).all()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_stay_in_their_history_and_before_their_event_if_causal(name):
    _, grad = encoded(name)
    reached = np.flatnonzero(grad.any(axis=1))
    last = 17 if make(name).config.causal else sum(LENGTHS)
    assert {11, 17} <= set(reached) <= set(range(11, last + 1))


def test_each_has_a_name_of_its_own():
    names = {name: make(name).config.name for name in MODELS}
    renamed = {name: own for name, own in names.items() if own != name}
    assert renamed == {
        "blossomrec": "blossom",
        "sasrec_blossom": "pre_norm blossom",
        "bert4rec_blossom": "masked blossom",
        "hstu_blossom": "hstu blossom",
    }


@pytest.mark.parametrize("name", ["sasrec", "linrec", "hstu"])
def test_with_other_positions_it_is_not_the_published_model(name):
    changed = dataclasses.replace(make(name).config, positions="rope")
    assert changed.name == " ".join(
        part for part in (changed.block, changed.attention) if part != "post_norm"
    )


def published_size(name):
    """Counts the parameters by the papers' formulas; where we differ, a comment says so."""
    m, i, v, length, r = 16, 24, NUM_ITEMS, MAX_LENGTH, 1
    norm, feed_forward, e, n = 2 * m, 2 * m * i + i + m, EXPANSION * m, STATE_SIZE
    table, positions = (v + 1) * m, length * m
    attention = 4 * m * m  # without biases
    post_norm = attention + (m * m + m) + feed_forward + 2 * norm  # with the authors' second map
    pre_norm = attention + feed_forward + 2 * norm
    state_space = m * 2 * e + (CONVOLUTION + 1) * e + e * (r + 2 * n) + (r + 1) * e + e * n + e
    return {
        "dense": table + norm + post_norm,
        "linrec": table + positions + norm + post_norm,
        "sasrec": table + positions + pre_norm + norm,
        "bert4rec": table + positions + norm + post_norm + m * m + m,  # no bias of each item
        "hstu": table + positions + 5 * m * m + (2 * length - 1) + 2 * norm + norm,
        "gru4rec": table + 3 * (m * m + m * m + m),
        "mamba4rec": table + norm + state_space + e * m + feed_forward + 2 * norm,
    }[name]


@pytest.mark.parametrize(
    "name", ["dense", "linrec", "sasrec", "bert4rec", "hstu", "gru4rec", "mamba4rec"]
)
def test_sizes_are_those_of_the_papers(name):
    assert num_params(make(name, num_kv_heads=4)) == published_size(name)


def trained_on_a_ring(name, num_steps, learning_rate):
    """Returns the model after some steps, and its last loss; users walk along a ring of items."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    optimizer, make_model = optax.adam(learning_rate), functools.partial(make, name)
    graphdef, _ = nnx.split(nnx.eval_shape(make_model))
    like = abstract_state(make_model, optimizer, mesh)
    loss = make_loss(LossConfig(loss_chunk=64), num_items=NUM_ITEMS, mesh=mesh)
    step = make_train_step(graphdef, optimizer, mesh, like, loss, mask_probability=0.3)
    first = np.arange(16)[:, None] * 5 + np.repeat([0, 7], 12)
    positions = np.tile(np.arange(12), (16, 2)).astype(np.int32)
    items = (first + positions) % NUM_ITEMS + 1
    batch = {"item_ids": items, "targets": items % NUM_ITEMS + 1, "positions": positions}
    batch = sharding.put_batch({name: x.astype(np.int32) for name, x in batch.items()}, mesh)
    state, seed = init_state(make_model, optimizer, like), jnp.uint32(0)
    for _ in range(num_steps):
        state, metrics = step(state, batch, seed)
    model = nnx.merge(graphdef, state["params"])
    return model, float(metrics["loss_sum"] / metrics["count"])


@pytest.mark.parametrize(
    ("name", "num_steps", "learning_rate"),
    [
        *((name, 20, 4e-2) for name in ("dense_gated", "linrec", "mamba4rec")),
        *((name, 20, 4e-2) for name in ("sasrec", "hstu", "gru4rec")),
        # About a fourth of the targets a step, and none to see beside a mask.
        ("bert4rec", 1000, 1e-2),
    ],
)
def test_it_learns_a_toy_problem_by_heart(name, num_steps, learning_rate):
    model, loss = trained_on_a_ring(name, num_steps, learning_rate)
    assert loss < 0.5
    items = jnp.arange(1, 11, dtype=jnp.int32)[None]
    scores = model.scores(model.encode_next(items, items - 1, jnp.array([9])))
    assert jnp.argmax(scores[0, 1:]) + 1 == 11
