"""Attention over rows that several devices share: the same numbers, and nothing gathered."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax import sharding
from blossom_jax.config import ModelConfig
from blossom_jax.mixers import make_mixer

SIZES = {
    "hidden_size": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "compress_block_size": 16,
    "compress_stride": 16,
    "selection_block_size": 16,
    "num_selected_blocks": 1,
    "max_length": 32,
}
QUICK = {"xla_backend_optimization_level": 0}
MOVES = re.compile("all-gather|all-to-all|collective-permute")


def prepare(attention, implementation, shape):
    """Returns the mesh, the parameters, and what maps these and a batch to a number."""
    config = ModelConfig(attention=attention, implementation=implementation, **SIZES)
    graphdef, params = nnx.split(make_mixer(config, rngs=nnx.Rngs(0)), nnx.Param)
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: shape[0] * shape[1]])

    def loss(params, batch):
        with sharding.traced_on(mesh):
            out = nnx.merge(graphdef, params)(batch["x"], batch["positions"])
        return jnp.sum(jnp.sin(out))

    x = np.random.default_rng(0).normal(size=(8, 32, 32)).astype(np.float32)
    positions = np.tile(np.arange(32, dtype=np.int32), (8, 1))
    batch = sharding.put_batch({"x": x, "positions": positions}, mesh)
    return jax.device_put(params, sharding.replicated(mesh)), batch, loss


@functools.cache
def of_one_device():
    params, batch, loss = prepare("blossom", "xla", (1, 1))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile(QUICK)
    return jax.device_get(compiled(params, batch))


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
def test_rows_stay_where_they_are(implementation):
    params, batch, loss = prepare("blossom", implementation, (4, 2))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, batch).compile(QUICK)
    assert not MOVES.search(compiled.as_text())
    found, wanted = jax.device_get(compiled(params, batch)), of_one_device()
    for eight, one in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(eight - one) <= 1e-5 * np.linalg.norm(one)


@pytest.mark.parametrize("attention", ["blossom", "ltis", "stis"])
def test_all_that_devices_exchange_is_the_sum(attention):
    params, batch, loss = prepare(attention, "triton_interpret", (4, 2))
    compiled = jax.jit(loss).lower(params, batch).compile(QUICK)
    # Left to itself, XLA shares every tile that a kernel reads by summing it over all devices.
    exchanged = re.findall(r"= (\S+|\(.*?\)) (all-reduce|reduce-scatter)\(", compiled.as_text())
    assert exchanged == [("f32[]", "all-reduce")]
    assert not MOVES.search(compiled.as_text())
