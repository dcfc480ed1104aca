"""Power attention in plain XLA: every query's list is the row at a few constant distances.

For a tile of queries the keys at one distance are one slice of the row: no gather, no mask matrix.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.positions import sequence_end
from pallas_kernels.streamed import add_blocks, read_blocks, streamed_attention
from pallas_kernels.tiles import tile_length


@dataclasses.dataclass(frozen=True)
class Distances:
    """Keys at fixed distances; by_query = index in the row, tokens behind, tokens ahead."""

    distances: tuple[int, ...]  # i - j; negative looks ahead
    margin: tuple[int, int]
    last_from: int  # the sequence's last token is one more key from this far ahead; 0 = it is not

    def _begins(self, by_query):
        return [self.margin[0] + by_query[0][0, 0] - distance for distance in self.distances]

    def _last(self, by_query, num_kv_heads):
        last = self.margin[0] + by_query[0] + by_query[2]
        return jnp.broadcast_to(last[:, None], (last.shape[0], num_kv_heads, last.shape[1]))

    def read(self, rows, by_query):
        """Reads slices of the rows: see `KeyList`."""
        index, behind, ahead = by_query
        tile = index.shape[1]
        begins = self._begins(by_query)
        lists = [jax.lax.dynamic_slice_in_dim(rows, begin, tile, axis=2) for begin in begins]
        allowed = [(d <= behind) & (-d <= ahead) for d in self.distances]
        if self.last_from:
            lists.append(read_blocks(rows, self._last(by_query, rows.shape[1]), 1)[:, :, :, 0])
            allowed.append(ahead >= self.last_from)
        return jnp.stack(lists, 3), jnp.stack(allowed, 2)[:, None]

    def add(self, rows, by_query, update):
        """Adds to slices of the rows: see `KeyList`."""
        tile = by_query[0].shape[1]
        for n, begin in enumerate(self._begins(by_query)):
            here = jax.lax.dynamic_slice_in_dim(rows, begin, tile, axis=2) + update[:, :, :, n]
            rows = jax.lax.dynamic_update_slice_in_dim(rows, here, begin, axis=2)
        if self.last_from:
            rows = add_blocks(rows, self._last(by_query, rows.shape[1]), update[:, :, :, -1:])
        return rows


def allowed_distances(window: int, causal: bool, max_history: int) -> tuple[int, ...]:
    """Lists the distances i - j at which a query may find a key, nearest first."""
    near = min(window, max_history)
    powers = (2**n for n in range(max_history.bit_length()))
    far = [power for power in powers if near <= power < max_history]
    ahead = [] if causal else range(-1, -near, -1)
    return (*range(near), *far, *ahead)


def power_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    *,
    window: int,
    causal: bool,
    max_history: int,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.power_attention`."""
    batch, length = positions.shape
    distances = allowed_distances(window, causal, max_history)
    margin = (max(distances), max(0, -min(distances)) + tile_length(batch, length))
    key_list = Distances(distances, margin, last_from=0 if causal else window)
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), positions.shape)
    ahead = jnp.where(positions >= 0, sequence_end(positions) - 1 - index, -1)
    nothing = jnp.zeros((batch, length, k.shape[2], 0), jnp.float32)
    return streamed_attention(q, k, v, nothing, (index, positions, ahead), key_list)
