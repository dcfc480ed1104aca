"""The optimizer against AdamW written out in NumPy, and what it must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blossom_jax.errors import UserError
from blossom_jax.optimizer import learning_rate_schedule, make_optimizer

DEFAULTS = {
    "learning_rate": 0.1,
    "warmup_steps": 0,
    "schedule": "constant",
    "total_steps": 10,
    "weight_decay": 0.0,
    "b1": 0.9,
    "b2": 0.98,
    "clip_norm": 0.0,
    "accumulate_steps": 1,
}


def make(**changes):
    return make_optimizer(**DEFAULTS | changes)


def apply(optimizer, params, gradients):
    """Returns the parameters after one update for every gradient in the list."""
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture
def params():
    return {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3), "bias": jnp.ones(3)}


def gradients(params, count, scale=1.0):
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32)

    return [jax.tree.map(draw, params) for _ in range(count)]


def test_three_updates_match_adamw_written_out(params):
    grads = gradients(params, 3)
    got = apply(make(weight_decay=0.01, warmup_steps=2), params, grads)
    for name, decay in (("kernel", 0.01), ("bias", 0.0)):
        want = np.asarray(params[name], np.float64)
        mean = square = np.zeros_like(want)
        for step, learning_rate in enumerate((0.0, 0.05, 0.1), start=1):
            gradient = np.asarray(grads[step - 1][name], np.float64)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.98 * square + 0.02 * gradient**2
            direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.98**step)) + 1e-8)
            want = want - learning_rate * (direction + decay * want)
        np.testing.assert_allclose(got[name], want, rtol=1e-5)


def test_a_frozen_parameter_without_gradient_stays_to_the_bit(params):
    optimizer = make(weight_decay=0.1, frozen=lambda path: path[0].key == "kernel")
    zeros = {"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(3)}
    after = apply(optimizer, params, [zeros] * 3)
    np.testing.assert_array_equal(after["kernel"], params["kernel"])
    assert not np.array_equal(after["bias"], params["bias"])
    decayed = apply(make(weight_decay=0.1), params, [zeros] * 3)
    assert not np.array_equal(decayed["kernel"], params["kernel"])


def test_clipping_bounds_the_norm_of_all_gradients_together(params):
    (large,) = gradients(params, 1, scale=100.0)
    clipped = jax.tree.map(lambda g: g / optax.tree.norm(large) * 0.5, large)
    small = jax.tree.map(lambda g: g * 1e-6, large)
    got = apply(make(clip_norm=0.5), params, [large, small])
    want = apply(make(), params, [clipped, small])
    for name in params:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)


def test_accumulation_averages_batches_into_one_update(params):
    grads = gradients(params, 4)
    pairs = [jax.tree.map(lambda a, b: (a + b) / 2, *grads[i : i + 2]) for i in (0, 2)]
    got = apply(make(accumulate_steps=2, clip_norm=1.0), params, grads)
    want = apply(make(clip_norm=1.0), params, pairs)
    for name in params:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)


def test_schedules_rise_and_then_hold_or_fall_to_zero():
    common = {"learning_rate": 2.0, "warmup_steps": 4, "total_updates": 12}
    constant = learning_rate_schedule(schedule="constant", **common)
    np.testing.assert_allclose([constant(s) for s in (0, 1, 4, 100)], [0.0, 0.5, 2.0, 2.0])
    cosine = learning_rate_schedule(schedule="cosine", **common)
    np.testing.assert_allclose([cosine(s) for s in (0, 2, 4, 8, 12)], [0, 1, 2, 1, 0], atol=1e-6)
    common["total_updates"] = 20
    wsd = learning_rate_schedule(schedule="wsd", **common)
    np.testing.assert_allclose([wsd(s) for s in (2, 4, 16, 18, 20)], [1, 2, 2, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"warmup_steps": -1},
        {"schedule": "linear"},
        {"schedule": "cosine", "warmup_steps": 10},
        {"schedule": "wsd", "warmup_steps": 9},
        {"weight_decay": -0.1},
        {"b1": 1.0},
        {"b2": -0.1},
        {"clip_norm": -1.0},
        {"accumulate_steps": 0},
    ],
)
def test_a_value_out_of_range_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(**wrong)
