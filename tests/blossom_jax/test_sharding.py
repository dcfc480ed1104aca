import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from blossom_jax import sharding
from blossom_jax.errors import UserError


class Toy(nnx.Module):
    def __init__(self, rngs):
        self.item_embedding = nnx.Embed(8, 4, rngs=rngs)
        self.intra_block_positions = nnx.Param(jnp.zeros((8, 4)))
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs)])


def specs(shardings):
    leaves, _ = jax.tree_util.tree_flatten_with_path(shardings)
    return {jax.tree_util.keystr(path): leaf.spec for path, leaf in leaves}


@pytest.mark.parametrize(
    ("data", "model", "shape"),
    [(-1, 1, (8, 1)), (8, 1, (8, 1)), (4, 2, (4, 2)), (-1, 4, (2, 4)), (1, -1, (1, 8))],
)
def test_mesh(data, model, shape):
    mesh = sharding.make_mesh(data, model)
    assert mesh.devices.shape == shape and mesh.size == 8


@pytest.mark.parametrize(
    ("data", "model"), [(3, -1), (-1, 3), (16, 1), (4, 1), (0, 1), (-1, -1), (-2, -4), (-1, 0)]
)
def test_mesh_that_does_not_fit(data, model):
    with pytest.raises(UserError, match=f"data={data} x model={model} does not fit 8 device"):
        sharding.make_mesh(data, model)


def test_one_device():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert mesh.devices.shape == (1, 1)


def test_the_item_table_alone_is_split():
    mesh = sharding.make_mesh(4, 2)
    params = nnx.state(Toy(nnx.Rngs(0)), nnx.Param)
    found = specs(sharding.param_shardings(mesh, params))
    split = {path for path, spec in found.items() if spec == P("model")}
    assert split == {"['item_embedding']['embedding'].value"}
    assert {spec for path, spec in found.items() if path not in split} == {P()}
    assert len(found) == 4


def test_optimizer_state_lies_as_its_parameters():
    mesh = sharding.make_mesh(4, 2)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    params = nnx.state(Toy(nnx.Rngs(0)), nnx.Param)
    found = specs(sharding.param_shardings(mesh, jax.eval_shape(optimizer.init, params)))
    split = [path for path, spec in found.items() if spec == P("model")]
    assert len(split) == 2 and all("item_embedding" in path for path in split)


def test_plain_dicts_are_trees_too():
    params = {"item_embedding": {"embedding": np.zeros((8, 4))}, "embedding": np.zeros(3)}
    mesh = sharding.make_mesh(2, 4)
    placed = jax.device_put(params, sharding.param_shardings(mesh, params))
    shards = placed["item_embedding"]["embedding"].addressable_shards
    assert {shard.data.shape for shard in shards} == {(2, 4)}
    assert placed["embedding"].is_fully_replicated


def test_table_that_does_not_split():
    params = {"item_embedding": {"embedding": np.zeros((12, 4))}}
    with pytest.raises(UserError, match="mesh.model=8 does not divide the 12 rows"):
        sharding.param_shardings(sharding.make_mesh(1, 8), params)


def test_check_batch():
    mesh = sharding.make_mesh(4, 2)
    sharding.check_batch(16, mesh)
    with pytest.raises(UserError, match="train.batch_rows=12 over 8 devices"):
        sharding.check_batch(12, mesh)


def test_put_batch():
    mesh = sharding.make_mesh(4, 2)
    batch = {"item_ids": np.arange(24, dtype=np.int32).reshape(8, 3), "last": np.arange(8)}
    placed = sharding.put_batch(batch, mesh)
    for name, rows in batch.items():
        np.testing.assert_array_equal(placed[name], rows)
        assert placed[name].sharding.is_equivalent_to(sharding.batch_sharding(mesh), rows.ndim)
