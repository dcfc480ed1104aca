"""Rows cut into tiles of queries, so that an XLA program holds one tile's work at a time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

# Over all rows of a batch, so that their gathered keys stay in the caches; but 16 of each row.
QUERIES_AT_ONCE = 128


def tile_length(batch: int, length: int) -> int:
    """Chooses how many queries of each row one tile holds: a power of two, or the whole row."""
    tile = 16
    while 2 * tile * batch <= QUERIES_AT_ONCE:
        tile *= 2
    return min(tile, length)


def split(x: Shaped[Array, "B L *rest"], tile: int, fill=0) -> Shaped[Array, "tiles B T *rest"]:
    """Cuts [B, L, ...] into [tiles, B, tile, ...], the last one filled up with `fill`."""
    batch, length = x.shape[:2]
    count = -(-length // tile)
    margin = [(0, 0), (0, count * tile - length)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, margin, constant_values=fill)
    return jnp.moveaxis(x.reshape(batch, count, tile, *x.shape[2:]), 1, 0)


def join(x: Shaped[Array, "tiles B T *rest"], length: int) -> Shaped[Array, "B L *rest"]:
    """Takes back `split`."""
    count, batch, tile = x.shape[:3]
    x = jnp.moveaxis(x, 0, 1).reshape(batch, count * tile, *x.shape[3:])
    return jax.lax.slice_in_dim(x, 0, length, axis=1)
