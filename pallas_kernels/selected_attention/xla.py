"""Selected attention in plain XLA: every query's list is its selected blocks and the local one.

The local block is one more block in the list, so own, tail and selected blocks take one road.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.positions import blocks
from pallas_kernels.streamed import add_blocks, read_blocks, streamed_attention


@dataclasses.dataclass(frozen=True)
class SelectedBlocks:
    """Keys of K = N + 1 whole blocks; by_query = first token and attended size of each block."""

    block_size: int

    @property
    def margin(self) -> tuple[int, int]:
        """A block may overhang the end of its row."""
        return 0, self.block_size

    def read(self, rows, by_query):
        """Reads blocks of the rows: see `KeyList`."""
        begin, size = (jnp.moveaxis(x, 1, 2) for x in by_query)
        b, g, t, k = begin.shape
        found = read_blocks(rows, begin.reshape(b, g, t * k), self.block_size)
        inside = jnp.arange(self.block_size) < size[..., None]
        return found.reshape(b, g, t, k * self.block_size, -1), inside.reshape(b, g, t, -1)

    def add(self, rows, by_query, update):
        """Adds to blocks of the rows: see `KeyList`."""
        begin = jnp.moveaxis(by_query[0], 1, 2)
        b, g, t, k = begin.shape
        update = update.reshape(b, g, t * k, self.block_size, -1)
        return add_blocks(rows, jnp.maximum(begin, 0).reshape(b, g, t * k), update)


def block_list(slots, positions, block_size, causal):
    """First token and attended size of each query's N + 1 blocks, int32[B, L, G, N + 1] each."""
    row = blocks(positions, block_size=block_size, causal=causal)
    begin = jnp.where(slots >= 0, slots * block_size + row.offset[:, :, None, None], 0)
    size = jnp.where(slots >= 0, block_size, 0)

    def with_local(selected, local):
        local = jnp.broadcast_to(local[:, :, None, None], (*selected.shape[:3], 1))
        return jnp.concatenate([selected, local], -1)

    return with_local(begin, row.local_begin), with_local(size, row.local_size)


def selected_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    slots: Int[Array, "B L G N"],
    probability: Float[Array, "B L G N"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    causal: bool,
    selection_gradient: str,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.selected_attention`."""
    if selection_gradient == "none":
        probability = jax.lax.stop_gradient(probability[..., :0])
    by_query = block_list(slots, positions, block_size, causal)
    return streamed_attention(q, k, v, probability, by_query, SelectedBlocks(block_size))
