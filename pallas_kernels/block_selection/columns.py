"""Finds a query's best slots without sorting every score: from the two best of each column.

Tiles of slots are laid over one another, so that each column holds one slot of each. Two scores
are kept of a column, and one of all that were dropped. The best N are among those kept if they beat
what was dropped, that is, if no three of them stand in one column; else they are sorted out anew.

The number of a score's tile stands in its last bits, in place of what they were. So scores that
differ in these bits alone are not told apart here: they too are left to be sorted out anew.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.block_selection.scores import SelectionSizes
from pallas_kernels.masked_softmax import MASKED

NO_SCORE = MASKED / 2  # above it are scores, below what is masked
LEAST_SCORE = 2.0**-100  # far above numbers whose last bits a GPU may take for 0


class Columns(NamedTuple):
    """What is kept of each column, f32[queries, columns] each.

    Attributes:
      best: the highest score.
      second: the next.
      dropped: the highest of those that are not kept.
    """

    best: Any
    second: Any
    dropped: Any


class Best(NamedTuple):
    """The best slots, best first.

    Attributes:
      values: N scores f32[queries], up to `sizes.rounding` of each off.
      slots: N of int32[queries].
      clear: bool[queries], whether these are the best, in order.
    """

    values: list
    slots: list
    clear: Any


def meet(columns: Columns, first, second) -> Columns:
    """Takes two tiles of scores: a sorted pair for each column, merged with the pair kept."""
    high, low = jnp.maximum(first, second), jnp.minimum(first, second)
    beaten, runner_up = jnp.minimum(columns.best, high), jnp.maximum(columns.second, low)
    return Columns(
        jnp.maximum(columns.best, high),
        jnp.maximum(beaten, runner_up),
        jnp.maximum(columns.dropped, jnp.minimum(beaten, runner_up)),
    )


def over_columns(score: Callable, begin, end, sizes: SelectionSizes) -> Best:
    """Finds the best slots of some tiles.

    Args:
      score: makes of the number of a pair of tiles their scores, f32[queries, columns] each.
      begin: first pair.
      end: end of the pairs.
      sizes: static sizes.
    """

    def step(n, columns):
        found = score(n)
        return meet(columns, *(_numbered(x, 2 * n + i, sizes) for i, x in enumerate(found)))

    nothing = jnp.full((sizes.tiles.queries, sizes.tiles.slots), MASKED, jnp.float32)
    columns = jax.lax.fori_loop(begin, end, step, Columns(nothing, nothing, nothing))
    return _take(columns, sizes)


def _take(columns: Columns, sizes: SelectionSizes) -> Best:
    """Takes the best N of what was kept."""
    best, second, dropped = columns
    width = best.shape[1]
    column = jax.lax.broadcasted_iota(jnp.int32, best.shape, 1)
    values, slots, single = [], [], []
    for _ in range(sizes.num_selected):
        value = best.max(1)
        there = best == value[:, None]
        place = jnp.where(there, column + width, 0).sum(1)  # 2 * width or more if there are several
        best, second = jnp.where(there, second, best), jnp.where(there, MASKED, second)
        tile = jax.lax.bitcast_convert_type(value, jnp.int32) & sizes.tile_mask
        values.append(value)
        slots.append((tile - 1) * width + place)
        single.append(place < 2 * width)
    rest = jnp.maximum(best.max(1), dropped.max(1))
    clear = jnp.ones(rest.shape, jnp.bool_)
    for value, following, alone in zip(values, [*values[1:], rest], single, strict=True):
        apart = alone & (_rounded(value, sizes) > _rounded(following, sizes))
        apart &= jnp.abs(value) > LEAST_SCORE
        clear &= jnp.where(value > NO_SCORE, apart, following < NO_SCORE)
    return Best(values, slots, clear)


def _numbered(scores, tile, sizes: SelectionSizes):
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32) & ~sizes.tile_mask | tile
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _rounded(scores, sizes: SelectionSizes):
    return _numbered(scores, 0, sizes)
