"""Who selected a block: the selection turned around, so that kernels can walk the blocks.

A pair is a query and one of its selected blocks, numbered ((b * L + token) * G + g) * N + n. Blocks
are numbered (b * G + g) * slots + slot.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.positions import slot_offset


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
    slots: Int[Array, "B L G N"], positions: Int[Array, "B L"], block_size: int
) -> InvertedLists:
    """Lists, for each block, the pairs that selected it, by one stable sort."""
    batch, length, kv_heads, _ = slots.shape
    num_slots = -(-length // block_size)
    head = jnp.arange(batch, dtype=jnp.int32)[:, None] * kv_heads + jnp.arange(kv_heads)
    blocks = batch * kv_heads * num_slots
    block = head.astype(jnp.int32)[:, None, :, None] * num_slots + slots
    block = jnp.where(slots >= 0, block, blocks).reshape(-1)
    pair = jnp.arange(block.size, dtype=jnp.int32)
    block, pair = jax.lax.sort((block, pair), num_keys=1, is_stable=True)
    begins = jnp.searchsorted(
        block, jnp.arange(blocks + 1, dtype=jnp.int32), method="scan_unrolled"
    ).astype(jnp.int32)
    offset = slot_offset(positions, block_size=block_size)
    return InvertedLists(pair, begins, offset.reshape(-1))
