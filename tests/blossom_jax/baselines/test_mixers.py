"""What mixes tokens, against its definition in NumPy, over more tokens than a chunk has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax.baselines.gru import GRU
from blossom_jax.baselines.hstu import SiluAttention
from blossom_jax.baselines.linear_attention import LinearAttention
from blossom_jax.baselines.mamba import selective_scan
from blossom_jax.config import ModelConfig

LENGTHS = (70, 3, 60)
SIZES = {"hidden_size": 8, "num_heads": 2, "num_kv_heads": 1, "max_length": 70}


def packed_row():
    positions = np.concatenate([np.arange(n) for n in LENGTHS] + [[-1, -1]])
    x = np.random.default_rng(0).normal(size=(1, len(positions), 8))
    return jnp.asarray(x, jnp.float32), jnp.asarray(positions, jnp.int32)[None]


def histories():
    begins = np.cumsum((0, *LENGTHS))
    return [slice(begin, begin + n) for begin, n in zip(begins, LENGTHS, strict=False)]


def assert_close(found, wanted):
    assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


def attended(module, x, qkv, causal, weigh):
    """Attends by a function of q [L, D], k [L, D] and the distances that gives all weights."""
    wanted = np.zeros((x.shape[1], 8))
    for where in histories():
        q0, q1, k, v = np.split(np.asarray(qkv, np.float64)[0, where], 4, axis=-1)
        distance = np.arange(len(k))[:, None] - np.arange(len(k))
        seen = distance >= 0 if causal else np.ones_like(distance, bool)
        heads = [np.where(seen, weigh(q, k, distance), 0) @ v for q in (q0, q1)]
        wanted[where] = np.concatenate(heads, axis=-1)
    return wanted


@pytest.mark.parametrize("causal", [True, False])
def test_linear_attention_is_a_product_of_unit_vectors(causal):
    config = ModelConfig(**SIZES, attention="linear", positions="none", causal=causal)
    module, (x, positions) = LinearAttention(config, rngs=nnx.Rngs(0)), packed_row()

    def unit(y):
        y = np.where(y > 0, y, np.expm1(y))
        return y / np.linalg.norm(y, axis=-1, keepdims=True)

    qkv = jnp.concatenate([x, -x], axis=-1)
    found = jax.jit(module.mix)(x, qkv, positions)[0]
    assert_close(found, attended(module, x, qkv, causal, lambda q, k, _: unit(q) @ unit(k).T / 2))


@pytest.mark.parametrize("causal", [True, False])
def test_silu_attention_weighs_each_pair_by_itself(causal):
    config = ModelConfig(**SIZES, attention="silu", positions="none", causal=causal)
    module, (x, positions) = SiluAttention(config, rngs=nnx.Rngs(0)), packed_row()
    bias = np.random.default_rng(1).normal(size=139)
    module.distance_bias.set_value(jnp.asarray(bias, jnp.float32))

    def silu(q, k, distance):
        logits = q @ k.T + bias[distance + 69]
        return logits / (1 + np.exp(-logits)) / 70

    qkv = jnp.concatenate([x, -x], axis=-1)
    found = jax.jit(module.mix)(x, qkv, positions)[0]
    assert_close(found, attended(module, x, qkv, causal, silu))


def test_the_selective_scan_differs_by_row_and_has_the_gradients_of_a_loop():
    """Of two rows of which each begins its histories elsewhere."""
    rng = np.random.default_rng(0)
    shapes = (2, 21, 4), (2, 21, 4), (2, 21, 3), (2, 21, 3), (4, 3)
    u, step, b, c, rate = (jnp.asarray(rng.uniform(0.1, 1, shape), jnp.float32) for shape in shapes)
    positions = jnp.asarray([[*range(21)], [*range(5), *range(16)]], jnp.int32)

    def loop(u, step, b, c, rate):
        def read(state, token):
            u, step, b, c, position = token
            state = jnp.exp(step[:, None] * rate) * state * (position > 0)
            state += (step * u)[:, None] * b
            return state, state @ c

        of_row = jax.vmap(lambda *row: jax.lax.scan(read, jnp.zeros(rate.shape), row)[1])
        return of_row(u, step, b, c, positions)

    def scan(*arrays):
        return selective_scan(*arrays, positions)

    arrays, weight = (u, step, b, c, -rate), jnp.asarray(rng.normal(size=(2, 21, 4)), jnp.float32)
    for found, wanted in zip(
        *(
            jax.jit(
                jax.value_and_grad(lambda *x, of=of: (of(*x) * weight).sum(), argnums=range(5))
            )(*arrays)
            for of in (scan, loop)
        ),
        strict=True,
    ):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), found, wanted)


def test_the_selective_scan_is_its_recurrence():
    (u, positions), rng = packed_row(), np.random.default_rng(1)
    step = rng.uniform(0.01, 1, u.shape)
    b, c = rng.normal(size=(2, *u.shape[:2], 3))
    rate = -rng.uniform(0.1, 2, (8, 3))
    wanted, state = np.zeros(u.shape), np.zeros((8, 3))
    for t, position in enumerate(np.asarray(positions[0])):
        state = np.exp(step[0, t, :, None] * rate) * state * (position > 0)
        state = state + (step[0, t] * u[0, t])[:, None] * b[0, t]
        wanted[0, t] = state @ c[0, t]
    arguments = (jnp.asarray(array, jnp.float32) for array in (u, step, b, c, rate))
    found = jax.jit(selective_scan)(*arguments, positions)
    assert_close(found[:, :-2], wanted[:, :-2])


def test_the_gru_begins_anew_with_each_history():
    config = ModelConfig(**SIZES, attention="gru", positions="none")
    module, (x, positions) = GRU(config, rngs=nnx.Rngs(0)), packed_row()
    found = np.asarray(jax.jit(module)(x, positions))

    @jax.jit
    def read(x):
        return jax.lax.scan(module.cell, jnp.zeros(8), x)[1]

    for where in histories():
        assert_close(found[0, where], np.asarray(read(x[0, where])))
