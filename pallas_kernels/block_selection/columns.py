"""Finds a query's best slots without sorting every score: from the two best of each column.

Tiles of slots are laid over one another, so that each column holds one slot of each. Two scores
are kept of a column, and one of all that were dropped. The best N are among those kept if they beat
what was dropped, that is, if no three of them stand in one column; else they are sorted out anew.

Then columns are laid over one another, twice in halves, so that a list of the best N is left of
each four. A thread of a GPU holds all four, so that takes no exchange.

Scores are compared as int32 keys: rounded to a fixed point, and below it the number of their slot.
So scores that are rounded to the same are not told apart here: they too are left to be sorted out
anew.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels.block_selection.scores import SelectionSizes, Slots
from pallas_kernels.triton_tools import fma, reciprocal

INTEGER = 1.5 * 2**23  # f32 from INTEGER - 2**22 to INTEGER + 2**22 are integers
INTEGER_BITS = 0x4B400000  # its bits; those of the integer n above it are n more
LEAST_BOUND = 2.0**-90  # of scores, so that its reciprocal is a normal number
NO_KEY = -(2**31)
LEAST_KEY = -(2**30) - 2**29  # above it are scores
HALVINGS = 2  # of the columns, before the best are taken of what is left


class Columns(NamedTuple):
    """What is kept of each column.

    Attributes:
      best: the highest key, int32[queries, columns].
      second: the next, likewise.
      dropped: the highest of those that are not kept, int32[queries, some columns].
    """

    best: Any
    second: Any
    dropped: Any


class Best(NamedTuple):
    """The best slots, best first.

    Attributes:
      slots: N of int32[queries], -1 where there is none.
      highest: the best score, f32[queries]; undefined if there is none.
      lowest: the score of the last slot, likewise.
      unit: f32[queries], what the error of these scores is at most, or little more.
      clear: bool[queries], whether these are the best, in order.
    """

    slots: list
    highest: Any
    lowest: Any
    unit: Any
    clear: Any


def meet(columns: Columns, first, second) -> Columns:
    """Takes two tiles of keys: a sorted pair for each column, merged with the pair kept."""
    high, low = jnp.maximum(first, second), jnp.minimum(first, second)
    beaten, runner_up = jnp.minimum(columns.best, high), jnp.maximum(columns.second, low)
    return Columns(
        jnp.maximum(columns.best, high),
        jnp.maximum(beaten, runner_up),
        _drop(columns.dropped, jnp.minimum(beaten, runner_up)),
    )


def over_columns(
    score: Callable, hide: Callable, pairs, bound, sizes: SelectionSizes, interpret: bool
) -> Best:
    """Finds the best slots of some tiles.

    Args:
      score: makes of the number of a pair of tiles their scores, f32[queries, 2 * columns].
      hide: takes that number and their keys, and puts `NO_KEY` where a query has no candidate.
      pairs: the first pair and the end of the pairs; at least one is taken.
      bound: f32[queries], that no score exceeds in absolute value.
      sizes: static sizes.
      interpret: see `launch`.
    """
    (begin, end), width, bits = pairs, sizes.tiles.slots, sizes.slot_bits
    unit = jnp.maximum(bound, LEAST_BOUND) * 2.0 ** -min(22, 30 - bits)
    scale = reciprocal(unit, interpret)[:, None]
    column = jax.lax.broadcasted_iota(jnp.int32, (sizes.tiles.queries, 2 * width), 1)
    zero = np.uint32(INTEGER_BITS << bits & 2**32 - 1).astype(np.int32)  # the key of nothing
    one = jnp.minimum(begin, 0) + 1  # no literal, so that a key is one product and sum, no shift

    def step(n, columns):
        rounded = fma(score(n), scale, jnp.float32(INTEGER), interpret)
        left = 2 * n * width - zero
        tile = jnp.where(column < width, left, left + one * width)
        keys = jax.lax.bitcast_convert_type(rounded, jnp.int32) * (one << bits) + tile
        return meet(columns, *halves(hide(n, keys)))

    def nothing(width):
        return jnp.full((sizes.tiles.queries, width), NO_KEY, jnp.int32)

    columns = Columns(nothing(width), nothing(width), nothing(width >> HALVINGS))
    columns = jax.lax.fori_loop(begin, jnp.maximum(end, begin + 1), step, columns)
    return _take(columns, unit, sizes)


def pairs_of(slots: Slots, sizes: SelectionSizes):
    """Returns the first pair of tiles that has slots of some query, and the end of them.

    The first one is a pair that exists even if no query has a slot.
    """
    width = 2 * sizes.tiles.slots
    first = jnp.minimum(slots.begin // width, sizes.tile_pairs - 1)
    return first, pl.cdiv(slots.end, width)


def halves(x):
    """Returns the left and the right columns."""
    return jnp.split(x, 2, 1)


def _drop(dropped, keys):
    """Takes keys that are not kept: only the highest of them matters."""
    while keys.shape[1] > dropped.shape[1]:
        keys = jnp.maximum(*halves(keys))
    return jnp.maximum(dropped, keys)


def _take(columns: Columns, unit, sizes: SelectionSizes) -> Best:
    """Takes the best N of what was kept."""
    lists, rest = _lists(columns, sizes)
    best, bits = [], sizes.slot_bits
    for _ in range(sizes.num_selected):
        best.append(lists[0].max(1))
        there = lists[0] == best[-1][:, None]
        following = [*lists[1:], NO_KEY]
        lists = [jnp.where(there, *x) for x in zip(following, lists, strict=True)]
    rest = jnp.maximum(rest, lists[0]).max(1)
    slots, clear, lowest = [], (best[-1] > LEAST_KEY) | (rest < LEAST_KEY), best[0]
    for key, following in zip(best, [*best[1:], rest], strict=True):
        score = key > LEAST_KEY
        slots.append(jnp.where(score, key & 2**bits - 1, -1))
        clear &= (key >> bits > following >> bits) | ~score
        lowest = jnp.where(score, key, lowest)
    highest, lowest = ((x >> bits).astype(jnp.float32) * unit for x in (best[0], lowest))
    return Best(slots, highest, lowest, unit, clear)


def _lists(columns: Columns, sizes: SelectionSizes):
    """Lays columns over one another: lists of their best N, best first, and what was dropped."""
    lists, rest = [columns.best, columns.second], columns.dropped
    column = jax.lax.broadcasted_iota(jnp.int32, lists[0].shape, 1)
    lists = [x | column for x in lists]
    for _ in range(HALVINGS):
        left, right = zip(*(halves(x) for x in lists), strict=True)
        lists = [_ranked(left, right, n) for n in range(min(2 * len(left), sizes.num_selected + 1))]
        if len(lists) > sizes.num_selected:
            *lists, dropped = lists
            rest = _drop(rest, dropped)
    return lists, rest


def _ranked(left, right, n: int):
    """Returns the n-th best, from 0 on, of two lists that are sorted, best first.

    Of the n + 1 best some stand in one list and the others in the other: the worst of them is as
    good as can be where the division is right.
    """
    found = [x[n] for x in (left, right) if n < len(x)]
    for i in range(n):
        if i < len(left) and n - 1 - i < len(right):
            found.append(jnp.minimum(left[i], right[n - 1 - i]))
    return functools.reduce(jnp.maximum, found)
