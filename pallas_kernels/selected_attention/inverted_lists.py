"""Who selected a block: the selection turned around, so that kernels can walk the blocks.

A pair is a query and one of its selected blocks, numbered ((b * L + token) * G + g) * N + n. Blocks
are numbered (b * G + g) * slots + slot.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from pallas_kernels.positions import slot_offset
from pallas_kernels.triton_tools import launch, read, write

_SEARCHES = 128  # of one program


class InvertedLists(NamedTuple):
    """The pairs of each block.

    Attributes:
      pairs: pairs sorted by block, within a block by query; those without a block at the end.
      begins: the pairs of block n are pairs[begins[n] : begins[n + 1]].
      offset: the block in slot w begins at token w * S + offset; by slot, for all heads.
    """

    pairs: Int[Array, "pairs"]
    begins: Int[Array, "blocks+1"]
    offset: Int[Array, "B*slots"]


def invert(
    slots: Int[Array, "B L G N"], positions: Int[Array, "B L"], block_size: int, interpret: bool
) -> InvertedLists:
    """Lists, for each block, the pairs that selected it, by one stable sort.

    Args:
      slots: selected, -1 for none.
      positions: -1 for padding.
      block_size: S.
      interpret: see `launch`.
    """
    batch, length, kv_heads, _ = slots.shape
    num_slots = -(-length // block_size)
    head = jnp.arange(batch, dtype=jnp.int32)[:, None] * kv_heads + jnp.arange(kv_heads)
    blocks = batch * kv_heads * num_slots
    block = head.astype(jnp.int32)[:, None, :, None] * num_slots + slots
    block = jnp.where(slots >= 0, block, blocks).reshape(-1)
    pair = jnp.arange(block.size, dtype=jnp.int32)
    block, pair = jax.lax.sort((block, pair), num_keys=1, is_stable=True)
    begins = _list_begins(block, blocks, interpret)
    offset = slot_offset(positions, block_size=block_size)
    return InvertedLists(pair, begins, offset.reshape(-1))


def _list_begins(block: Int[Array, "pairs"], blocks: int, interpret: bool):
    """Finds where the pairs of each block begin among those sorted by block; the end at last."""
    return launch(
        list_begins_kernel,
        block,
        jax.ShapeDtypeStruct((blocks + 1,), jnp.int32),
        name="list_begins",
        programs=pl.cdiv(blocks + 1, _SEARCHES),
        num_warps=4,
        num_stages=1,
        interpret=interpret,
        pairs=block.size,
        blocks=blocks,
    )


def list_begins_kernel(block, out, *, pairs: int, blocks: int, interpret: bool):
    """Searches `block` [pairs], which is sorted, for where `out` [blocks + 1] may be put in."""
    del interpret
    wanted = pl.program_id(0) * _SEARCHES + jnp.arange(_SEARCHES, dtype=jnp.int32)

    def halve(_, bounds):
        begin, end = bounds
        middle = begin + jax.lax.div(end - begin, 2)
        below = read(block, middle, begin < end, other=blocks + 1) < wanted
        return jnp.where(below, middle + 1, begin), jnp.where(below, end, middle)

    start = jnp.zeros_like(wanted), jnp.full_like(wanted, pairs)
    begin, _ = jax.lax.fori_loop(0, pairs.bit_length(), halve, start)
    write(out, wanted, wanted <= blocks, begin)
