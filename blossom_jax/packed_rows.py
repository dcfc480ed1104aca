"""Rows that hold several histories, each of which is found by where its last token stands.

A place is the index of a token in its batch, rows one behind the other. On several devices each
has its own rows and the histories in them, so that what is read lies on the device that reads it.
A place behind the last row, as nobody's history has, reads anything.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from blossom_jax import sharding


def take(x: Shaped[Array, "B L *rest"], place: Int[Array, "U"]) -> Shaped[Array, "U *rest"]:
    """Reads single tokens.

    Args:
      x: Of every token.
      place: Of the tokens to read; as many for each device.
    """
    return sharding.by_rows(lambda x, place: _flat(x)[_own(x, place)])(x, place)


def read_from(
    x: Shaped[Array, "B L *rest"], place: Int[Array, "U"], length: int
) -> Shaped[Array, "U length *rest"]:
    """Reads neighbouring tokens.

    Args:
      x: Of every token.
      place: Where to begin; as many for each device.
      length: Tokens to read. Behind a history stands anything.
    """

    def read(x, place):
        margin = [(0, length)] + [(0, 0)] * (x.ndim - 2)
        tokens = jnp.pad(_flat(x), margin)
        return jax.vmap(lambda begin: jax.lax.dynamic_slice_in_dim(tokens, begin, length))(
            _own(x, place)
        )

    return sharding.by_rows(read)(x, place)


def one_a_row(
    item_ids: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    last: Int[Array, "U"],
    length: int,
) -> tuple[Int[Array, "U length"], Int[Array, "U length"], Int[Array, "U"]]:
    """Gives each history a row of its own, left-aligned.

    Args:
      item_ids: Items.
      positions: int32, position of each token inside its own history, -1 at padding.
      last: Place of each history's last token.
      length: Of the rows, no shorter than the longest history.

    Returns:
      The items, 0 at padding, the positions, and the places of the last tokens in these rows.
    """
    position = take(positions, last)
    items = read_from(item_ids, last - position, length)
    column = jnp.arange(length, dtype=jnp.int32)
    is_own = column <= position[:, None]
    begin = length * jnp.arange(len(last), dtype=jnp.int32)
    return jnp.where(is_own, items, 0), jnp.where(is_own, column, -1), begin + position


def _flat(x):
    return x.reshape(-1, *x.shape[2:])


def _own(x, place):
    """Counts places from the first token of the device's own rows."""
    return place % (x.shape[0] * x.shape[1])
