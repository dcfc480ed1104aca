"""Sizes and places of selected blocks: shared by the kernels, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.selected_attention.config import BlockTiles
from pallas_kernels.triton_tools import LEAST_TILE, LOG2_E, Heads, read

# What reading ahead may take, as found by compiling:
MOST_REGISTERS = 192  # of a thread, by an estimate
MOST_SHARED = 256  # bytes of a query


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Static sizes of the kernels that walk blocks.

    Attributes:
      heads: of the arrays.
      block_size: S.
      num_selected: N.
      scale: of the logits.
      tiles: how the work is cut up.
    """

    heads: Heads
    block_size: int
    num_selected: int
    scale: float
    tiles: BlockTiles

    @property
    def log2_scale(self) -> float:
        """Scale of logits that are powers of two."""
        return self.scale * LOG2_E

    @property
    def keys(self) -> int:
        """Rows that a program sets aside for a block's keys."""
        return max(LEAST_TILE, pl.next_power_of_2(self.block_size))

    @property
    def pairs(self) -> int:
        """Pairs that a program works on at a time."""
        return max(1, max(LEAST_TILE, self.tiles.rows) // self.heads.padded_group)

    def reads_ahead(self, q) -> bool:
        """Tells whether the backward pass has room to read a tile's queries one tile ahead.

        Args:
          q: the queries, for their dtype and columns.
        """
        columns, size = q.shape[1], q.dtype.itemsize
        rows = self.pairs * self.heads.padded_group
        block = 2 * self.keys * columns * (4 + size)  # keys and values, and their gradients in f32
        queries = 4 * rows * columns * size  # q and d_out, of two tiles
        logits = 3 * rows * self.keys * 4
        registers = (block + queries + logits) / (4 * 32 * self.tiles.num_warps)
        return registers <= MOST_REGISTERS and columns * size <= MOST_SHARED

    @property
    def slots(self) -> int:
        """Blocks that a row of the batch has room for."""
        return pl.cdiv(self.heads.length, self.block_size)

    @property
    def launch(self) -> dict[str, int]:
        """Compiler parameters."""
        return {"num_warps": self.tiles.num_warps, "num_stages": self.tiles.num_stages}

    def programs(self, batch: int) -> int:
        """Size of the grid: one program a block."""
        return batch * self.heads.kv_heads * self.slots


def block_rows(lists, block, sizes: BlockSizes):
    """Finds the keys of a block.

    Args:
      lists: refs of `InvertedLists`.
      block: its number.
      sizes: static sizes.

    Returns:
      Rows of k and v, which of them there are, the beginning and the end of the block's pairs.
    """
    heads = sizes.heads
    begin, end = lists.begins[block], lists.begins[block + 1]
    g, b = (block // sizes.slots) % heads.kv_heads, block // (sizes.slots * heads.kv_heads)
    slot = block % sizes.slots
    n = jnp.arange(sizes.keys, dtype=jnp.int32)
    token = slot * sizes.block_size + lists.offset[b * sizes.slots + slot] + n
    real = (n < sizes.block_size) & (token < heads.length) & (begin < end)
    return (b * heads.length + token) * heads.kv_heads + g, real, begin, end


def read_pairs(lists, first, end, sizes: BlockSizes):
    """Reads the pairs of a tile, one for each row; past the end, the block's last one again.

    Args:
      lists: refs of `InvertedLists`.
      first: first of the tile's pairs, by place in the lists.
      end: end of the block's pairs.
      sizes: static sizes.
    """
    row = jnp.arange(sizes.pairs * sizes.heads.padded_group, dtype=jnp.int32)
    at = jnp.minimum(first + row // sizes.heads.padded_group, end - 1)
    return read(lists.pairs, jnp.maximum(at, 0), None)


def pair_rows(pair, first, end, sizes: BlockSizes):
    """Finds the query heads of a tile of pairs.

    Args:
      pair: from `read_pairs`.
      first: first of the tile's pairs, by place in the lists.
      end: end of the block's pairs.
      sizes: static sizes.

    Returns:
      Rows of parts (pair * R + member), rows of q, and which of them are the tile's: [rows] each.
      Of q the others can be read too: they are rows of a query that selected the block.
    """
    group, padded = sizes.heads.group, sizes.heads.padded_group
    row = jnp.arange(sizes.pairs * padded, dtype=jnp.int32)
    member = row % padded
    real = (first + row // padded < end) & (member < group)
    if padded > group:
        member = jnp.minimum(member, group - 1)
    query = jax.lax.div(pair.astype(jnp.uint32), jnp.uint32(sizes.num_selected)).astype(jnp.int32)
    part = jnp.where(real, pair * group + member, 0)  # interpreted, other rows are written back
    return part, query * group + member, real
