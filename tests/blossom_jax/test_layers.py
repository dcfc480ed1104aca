"""Dropout, layer norm and feed-forward, against NumPy where there is something to compute."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax import layers
from blossom_jax.config import ModelConfig
from blossom_jax.mixers import make_mixer


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_keeps_the_expectation(rate, impl):
    key = jax.random.key(3, impl=impl)
    dropped = np.asarray(layers.dropout(jnp.ones((64, 33, 63)), rate, key)) == 0
    deviation = np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(dropped.mean() - rate) < 4 * deviation + 1 / 512
    # No element, row or lane of a word is favoured.
    for axes in [(0, 1), (0, 2), (1, 2)]:
        share = dropped.mean(axes)
        deviation = np.sqrt(rate * (1 - rate) * share.size / dropped.size)
        assert np.abs(share - rate).max() < 5 * deviation + 1 / 512
    kept = layers.dropout(jnp.ones((64, 64)), rate, key)
    np.testing.assert_allclose(kept[kept > 0], 1 / (1 - rate), rtol=0.02)
    assert abs(float(layers.dropout(jnp.ones((512, 512)), rate, key).mean()) - 1) < 0.02


def test_dropout_is_a_function_of_its_key():
    x, key = jnp.ones((4, 7, 10)), jax.random.key(0)
    first, again = (layers.dropout(x, 0.5, key) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != layers.dropout(x, 0.5, jax.random.key(1))).any()


def test_dropout_that_drops_nothing():
    x, key = jnp.ones((2, 3, 5), jnp.bfloat16), jax.random.key(0)
    assert layers.dropout(x, 0.5, None) is x
    assert layers.dropout(x, 0.0, key) is x
    assert layers.dropout(x, 0.999, key).dtype == jnp.bfloat16
    assert layers.split_key(None, 2) == [None, None]


def test_dropout_is_the_same_on_any_number_of_devices():
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("needs two devices")
    mesh = jax.sharding.Mesh(devices[:2], "data")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, key = jnp.ones((4, 6, 8)), jax.random.key(0)
    split = jax.jit(lambda x: layers.dropout(x, 0.5, key))(jax.device_put(x, rows))
    np.testing.assert_array_equal(split, layers.dropout(x, 0.5, key))


def test_layer_norm_of_a_narrow_row_far_from_zero():
    x = np.float32(1000) + np.array([[0.0, 1e-3, 2e-3, 3e-3]], np.float32)
    norm = layers.LayerNorm(ModelConfig(hidden_size=4, num_heads=2), rngs=nnx.Rngs(0))
    want = x.astype(np.float64)
    want = (want - want.mean()) / want.std()
    np.testing.assert_allclose(norm(jnp.asarray(x)), want, atol=0.05)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    config = ModelConfig(hidden_size=8, inner_size=16, dtype="bfloat16")
    feed_forward = layers.FeedForward(config, rngs=nnx.Rngs(0))
    assert feed_forward(jnp.ones((1, 2, 8))).dtype == jnp.bfloat16
    assert layers.LayerNorm(config, rngs=nnx.Rngs(0))(jnp.ones((2, 8))).dtype == jnp.bfloat16
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(feed_forward))}
    assert dtypes == {jnp.dtype("float32")}


def test_feed_forward_is_the_exact_gelu_between_two_linear_maps():
    config = ModelConfig(hidden_size=4, num_heads=2, inner_size=6)
    module = layers.FeedForward(config, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)) * 100
    kernel_1, kernel_2 = (
        np.asarray(d.kernel[...], np.float64) for d in (module.dense_1, module.dense_2)
    )
    inner = x @ kernel_1
    erf = np.vectorize(math.erf)
    want = (inner * (1 + erf(inner / np.sqrt(2))) / 2) @ kernel_2
    np.testing.assert_allclose(module(jnp.asarray(x, jnp.float32)), want, rtol=1e-4, atol=1e-6)


def test_feed_forward_keeps_the_product_and_its_activation():
    config = ModelConfig(hidden_size=4, num_heads=2, inner_size=6, dtype="bfloat16")
    graphdef, params = nnx.split(layers.FeedForward(config, rngs=nnx.Rngs(0)))
    x = jnp.ones((2, 3, 4), jnp.bfloat16)
    _, pull = jax.vjp(lambda params, x: nnx.merge(graphdef, params)(x), params, x)
    wide = [leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.shape == (2, 3, 6)]
    assert wide == [jnp.bfloat16, jnp.bfloat16]


def test_gelu_in_bfloat16_is_that_of_float32_rounded():
    x = jnp.linspace(-4, 4, 1001, dtype=jnp.bfloat16)
    wide = layers.exact_gelu(x.astype(jnp.float32))
    np.testing.assert_array_equal(layers.exact_gelu(x), wide.astype(jnp.bfloat16))


@pytest.mark.parametrize(("dtype", "exact"), [("float32", 4), ("bfloat16", 0)])
def test_float32_asks_for_exact_products(dtype, exact):
    """A GPU rounds the inputs of f32 products to 10 bits unless it is told not to."""
    module = make_mixer(ModelConfig(attention="dense", dtype=dtype), rngs=nnx.Rngs(0))
    inputs = jnp.ones((1, 4, 64), dtype), jnp.arange(4, dtype=jnp.int32)[None]
    program = str(jax.make_jaxpr(module)(*inputs))
    assert program.count("dot_general[") == 4  # qkv, logits, values, out
    assert program.count("precision=(Precision.HIGHEST") == exact
