"""Tiles are chosen by shape, by measurement where there is one."""

import jax.numpy as jnp
import pytest

from pallas_kernels import tuned
from pallas_kernels.block_selection.config import SelectionTiles
from pallas_kernels.power_attention.config import NearTiles
from pallas_kernels.selected_attention.blocks import BlockSizes
from pallas_kernels.selected_attention.config import BlockTiles
from pallas_kernels.triton_tools import Heads

SHAPE = {"head_size": 16, "dtype": "bfloat16", "group": 4, "block_size": 16}


@pytest.fixture
def table(monkeypatch):
    entries = [
        {"kernel": "near_keys", "shape": {**SHAPE, "length": length}, "tiles": {"num_warps": warps}}
        for length, warps in ((512, 1), (8192, 8))
    ]
    monkeypatch.setattr(tuned, "table", lambda: entries)


@pytest.mark.parametrize(
    "kernel, change, warps",
    [
        ("near_keys", {"length": 300}, 1),
        ("near_keys", {"length": 16384}, 8),
        ("near_keys", {"length": 300, "group": 1}, 4),
        ("near_queries", {"length": 300}, 4),
    ],
)
def test_the_nearest_length_of_the_same_shape_is_taken(table, kernel, change, warps):
    assert tuned.choose(kernel, SHAPE | change, NearTiles(64, 4)) == NearTiles(64, warps)


def test_tiles_can_be_forced(table):
    with tuned.force("near_keys", NearTiles(16, 2)):
        assert tuned.choose("near_keys", SHAPE | {"length": 9}, None) == NearTiles(16, 2)
    assert tuned.choose("near_queries", SHAPE | {"length": 9}, None) is None


def test_the_shipped_table_names_tiles_that_exist():
    classes = {"near": NearTiles, "blocks": BlockTiles, "selection": SelectionTiles}
    tuned.table.cache_clear()
    for entry in tuned.table():
        classes[entry["kernel"].split("_")[0]](**entry["tiles"])
        assert entry["shape"].keys() == {*SHAPE, "length"}


@pytest.mark.parametrize("tiles", [(48, 4), (8, 4), (2048, 4)])
@pytest.mark.parametrize("kind", [NearTiles, BlockTiles])
def test_rows_that_no_program_can_have_are_refused(kind, tiles):
    with pytest.raises(ValueError, match="must be a power of two from 16 to 1024"):
        kind(*tiles)


def test_slots_that_no_product_can_have_are_refused():
    with pytest.raises(ValueError, match="powers of two of at least 16"):
        SelectionTiles(16, 24, 1)


def test_wide_heads_get_fewer_rows_and_more_warps():
    small, large = (NearTiles.by_keys(d, jnp.bfloat16) for d in (16, 128))
    assert small.rows > large.rows and small.num_warps < large.num_warps
    small, large = (BlockTiles.backward(16, d, jnp.bfloat16) for d in (16, 128))
    assert small.rows > large.rows and small.num_warps < large.num_warps


@pytest.mark.parametrize(
    ("dtype", "head_size", "block_size", "ahead"),
    [
        ("bfloat16", 16, 16, True),
        ("bfloat16", 32, 32, False),  # registers
        ("float32", 32, 64, True),
        ("float32", 128, 16, False),  # shared memory
    ],
)
def test_queries_are_read_ahead_where_there_is_room(dtype, head_size, block_size, ahead):
    tiles = BlockTiles.backward(block_size, head_size, jnp.dtype(dtype))
    sizes = BlockSizes(Heads(4096, 2, 4), block_size, 4, head_size**-0.5, tiles)
    assert sizes.reads_ahead(jnp.zeros((8, head_size), dtype)) == ahead
