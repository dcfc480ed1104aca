"""Sizes and places of selected blocks: shared by the kernels, forward and backward."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.selected_attention.config import BlockTiles
from pallas_kernels.selected_attention.inverted_lists import Run, longest_run
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

    def longest_run(self, lists) -> int:
        """Pairs of these `InvertedLists` that one program walks at most."""
        return longest_run(lists.pairs.shape[0], self.block_size, self.num_selected)


def block_rows(lists, run: Run, sizes: BlockSizes):
    """Finds the keys of a run's block.

    Args:
      lists: refs of `InvertedLists`.
      run: of a program.
      sizes: static sizes.

    Returns:
      Rows of k and v, and which of them there are; none for a run without pairs.
    """
    heads, block = sizes.heads, run.block
    g, b = (block // sizes.slots) % heads.kv_heads, block // (sizes.slots * heads.kv_heads)
    slot = block % sizes.slots
    n = jnp.arange(sizes.keys, dtype=jnp.int32)
    token = slot * sizes.block_size + lists.offset[b * sizes.slots + slot] + n
    real = (n < sizes.block_size) & (token < heads.length) & (run.begin < run.end)
    return (b * heads.length + token) * heads.kv_heads + g, real


def pair_rows(lists, first, end, sizes: BlockSizes):
    """Finds the query heads of a tile of pairs.

    Args:
      lists: refs of `InvertedLists`.
      first: first of the tile's pairs, by place in the lists.
      end: end of the run.
      sizes: static sizes.

    Returns:
      Rows of parts (pair * R + member), rows of q, and which of them there are: [rows] each.
    """
    heads = sizes.heads
    row = jnp.arange(sizes.pairs * sizes.heads.padded_group, dtype=jnp.int32)
    at, member = first + row // sizes.heads.padded_group, row % sizes.heads.padded_group
    real = (at < end) & (member < heads.group)
    pair = read(lists.pairs, at, real, other=0)
    return (
        pair * heads.group + member,
        (pair // sizes.num_selected) * heads.group + member,
        real,
    )
