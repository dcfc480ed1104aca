"""Selects by sorting scores in: exact in every case, and slow.

Serves where the probability is asked for, where selections are large, and where columns.py left
doubt. The log-sum-exp is a second pass, taken for the probability, or if a choice may be below the
least.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.block_selection.reference import LEAST_PROBABILITY, NOTHING_LOGIT
from pallas_kernels.block_selection.scores import (
    Queries,
    ScoreInputs,
    SelectionSizes,
    hide,
    read_queries,
    score_slots,
    slot_range,
    write_choice,
)
from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.triton_tools import log2, write

NO_SCORE = MASKED / 2  # above it are scores, below what is masked


class _Tiles(NamedTuple):
    """The tiles of slots in which a tile of queries has candidates.

    Attributes:
      begin: number of the first.
      end: their end.
      score: makes of a number the scores f32[queries, slots], `MASKED` where there is no candidate.
    """

    begin: Any
    end: Any
    score: Callable


def select_sorted(
    x: ScoreInputs,
    at,
    out,
    sizes: SelectionSizes,
    with_probability: bool,
    interpret: bool,
    floor=MASKED,
) -> None:
    """Selects for a tile of queries.

    Args:
      x: arrays.
      at: first token, batch row and key/value head.
      out: see `selection_forward`.
      sizes: static sizes.
      with_probability: whether it is asked for.
      interpret: see `launch`.
      floor: f32[queries] or f32, that the choices are known to be above.
    """
    first, b, g = at
    queries = read_queries(x, first, b, g, sizes)
    slots, width = slot_range(x, first, b, sizes), sizes.tiles.slots

    def score(n):
        found = score_slots(x, queries, (n * width, width), b, g, sizes, interpret)
        return hide(queries, slots, n * width, found, MASKED)

    tiles = _Tiles(slots.begin // width, pl.cdiv(slots.end, width), score)
    values, chosen = _sort(tiles, floor, queries, sizes)
    highest, sure = jnp.maximum(values[0], NOTHING_LOGIT), None
    if not with_probability:
        sure = _surely_probable_choices(values, queries, interpret)
    inverse_total = _inverse_total(tiles, highest, sure)
    for n in range(sizes.num_selected):
        probability = jnp.exp(values[n] - highest) * inverse_total
        probable = probability > LEAST_PROBABILITY
        keep = (values[n] > NO_SCORE) & (probable if sure is None else sure | probable)
        write_choice(out["slots"], queries, n, jnp.where(keep, chosen[n], -1), sizes)
        if with_probability:
            kept = jnp.where(keep, probability, 0.0)
            write_choice(out["probability"], queries, n, kept, sizes)
    if with_probability:
        write(out["highest"], queries.row, queries.real, highest)
        write(out["inverse_total"], queries.row, queries.real, inverse_total)


def _sort(tiles: _Tiles, floor, queries: Queries, sizes: SelectionSizes):
    """Returns the best N scores f32[queries] each and their slots, best first."""
    floor = jnp.broadcast_to(jnp.asarray(floor, jnp.float32), queries.row.shape)
    none = floor, jnp.full_like(queries.row, -1)
    return jax.lax.fori_loop(
        tiles.begin,
        tiles.end,
        lambda n, best: _sort_in(tiles.score(n), n * sizes.tiles.slots, best),
        tuple((part,) * sizes.num_selected for part in none),
    )


def _sort_in(found, first_slot, best):
    """Takes scores that beat a query's worst choice, best first, into its sorted choices.

    Args:
      found: f32[queries, slots].
      first_slot: of the tile.
      best: f32[queries] and int32[queries], N of each, by falling score.
    """
    column = jax.lax.broadcasted_iota(jnp.int32, found.shape, 1)

    def take(_, carry):
        found, values, slots = carry
        value = found.max(1)
        at = jnp.where(found == value[:, None], column, found.shape[1]).min(1)
        found = jnp.where(column == at[:, None], MASKED, found)
        values, slots, slot = list(values), list(slots), first_slot + at
        places = [value > x for x in values]  # ties stay with the slot that came first
        for n, above in enumerate(places):  # what is moved down is placed before its equals
            values[n], value = (
                jnp.where(above, value, values[n]),
                jnp.where(above, values[n], value),
            )
            slots[n], slot = jnp.where(above, slot, slots[n]), jnp.where(above, slots[n], slot)
        return found, tuple(values), tuple(slots)

    values, slots = best
    better = jnp.where(found > values[-1][:, None], 1, 0).sum(1).max()
    _, values, slots = jax.lax.fori_loop(
        0, jnp.minimum(better, len(values)), take, (found, values, slots)
    )
    return values, slots


def _inverse_total(tiles: _Tiles, highest, sure):
    """Sums exp(score - highest), and of nothing; only over what is not `sure`, if that is told."""

    def add(n, total):
        return total + jnp.exp(tiles.score(n) - highest[:, None]).sum(1)

    end = tiles.end
    if sure is not None:
        end = tiles.begin + (end - tiles.begin) * jnp.where(sure, 0, 1).max()
    total = jax.lax.fori_loop(tiles.begin, end, add, jnp.exp(NOTHING_LOGIT - highest))
    return 1.0 / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)


def _surely_probable_choices(values, queries: Queries, interpret: bool):
    """Tells which queries' choices are surely above the least probability, or none at all."""
    lowest = values[0]
    for value in values[1:]:
        lowest = jnp.where(value > NO_SCORE, value, lowest)
    sure = surely_probable(values[0], values[0] - lowest, queries, interpret)
    return sure | (values[0] <= NO_SCORE)


def surely_probable(best, spread, queries: Queries, interpret: bool):
    """Tells which queries' choices are all above the least probability, whatever else there is.

    The probability of a score is at least exp(score - best) / (candidates + 1).

    Args:
      best: f32[queries], the best score.
      spread: f32[queries], how much lower the worst choice is, or more.
      queries: their queries.
      interpret: see `launch`.
    """
    count = queries.number.astype(jnp.float32) + 1.0
    margin = -math.log(LEAST_PROBABILITY) - 0.01  # spares the rounding of the logarithm
    spread += log2(count, interpret) * math.log(2)
    return (spread < margin) & (best > NOTHING_LOGIT)
