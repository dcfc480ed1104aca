"""Kernel that scores blocks and keeps the best N of each query, without writing a score.

A tile of queries streams over the summary keys. Where slots alone are asked for, what the best are
comes from the columns of columns.py. Where that leaves doubt, or few slots are there, or the
probability is asked for, scores are sorted in, if they beat a query's worst choice so far. The
log-sum-exp is a second pass, taken for the probability, or if a choice may be below the least.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.block_selection.columns import NO_KEY, over_columns
from pallas_kernels.block_selection.reference import LEAST_PROBABILITY, NOTHING_LOGIT
from pallas_kernels.block_selection.scores import (
    Inputs,
    Queries,
    SelectionSizes,
    hide,
    key_rows,
    place,
    products,
    read_queries,
    slot_range,
)
from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.triton_tools import launch, log2, read_across, write

NO_SCORE = MASKED / 2  # above it are scores, below what is masked


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
        for n in range(len(values)):
            above = value > values[n]  # ties stay with the slot that came first
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


def selection_forward_kernel(
    x: Inputs, out, *, sizes: SelectionSizes, with_probability: bool, interpret: bool
):
    """Selects for a tile of queries: slots, and probabilities and log-sum-exp where asked for."""
    tiles = pl.cdiv(sizes.length, sizes.tiles.queries)
    tile, b, g = place(pl.program_id(0), tiles, sizes.kv_heads)
    first = tile * sizes.tiles.queries
    if with_probability or not sizes.by_columns:
        _select_sorted(x, (first, b, g), out, sizes, with_probability, interpret)
        return
    clear, floor, nothing = _select_by_columns(x, (first, b, g), out, sizes, interpret)

    @pl.when(clear == 0)
    def _():  # finds everything anew, so that no register holds it until here
        anew = first + nothing, b, g
        _select_sorted(x, anew, out, sizes, with_probability, interpret, floor)


def _score(x: Inputs, queries: Queries, at, first_slot, count: int, sizes, interpret: bool):
    """Scores queries and `count` slots."""
    _, b, g = at
    _, row, real = key_rows(first_slot, count, b, g, sizes)
    keys = read_across(x.summary_keys, row, real, columns=x.summary_keys.shape[1])
    return products(queries, keys, interpret, transpose=False)


def _select_by_columns(x: Inputs, at, out, sizes: SelectionSizes, interpret: bool):
    """Selects by columns.

    Returns:
      Whether that is sure for all queries; for each what its best N are above, or `MASKED`; and 0,
      but no literal.
    """
    first, b, g = at
    queries = read_queries(x, first, b, g, sizes)
    slots, width = slot_range(x, first, b, sizes), 2 * sizes.tiles.slots
    found = over_columns(
        lambda n: _score(x, queries, at, n * width, width, sizes, interpret),
        lambda n, keys: hide(queries, slots, n * width, keys, NO_KEY),
        (slots.begin // width, pl.cdiv(slots.end, width)),
        queries.bound,
        sizes,
        interpret,
    )
    for n, slot in enumerate(found.slots):
        _write(out["slots"], queries, n, slot, sizes)
    spread = found.highest - found.lowest + 2 * found.unit
    sure = _surely_probable(found.highest, spread, queries, interpret) | (found.slots[0] < 0)
    floor = jnp.where(found.slots[-1] >= 0, found.lowest - 2 * found.unit, MASKED)
    floor = jnp.where(floor > MASKED, floor, MASKED)  # neither where it overflows
    return jnp.where(found.clear & sure, 1, 0).min(), floor, jnp.minimum(slots.begin, 0)


def _select_sorted(
    x: Inputs, at, out, sizes, with_probability: bool, interpret: bool, floor=MASKED
):
    """Selects by sorting in one tile of slots after the other, of scores above `floor`."""
    first, b, g = at
    queries = read_queries(x, first, b, g, sizes)
    candidates, width = slot_range(x, first, b, sizes), sizes.tiles.slots
    begin, end = candidates.begin // width, pl.cdiv(candidates.end, width)

    def score(n):
        found = _score(x, queries, at, n * width, width, sizes, interpret)
        return hide(queries, candidates, n * width, found, MASKED)

    floor = jnp.broadcast_to(jnp.asarray(floor, jnp.float32), queries.row.shape)
    none = floor, jnp.full_like(queries.row, -1)
    values, slots = jax.lax.fori_loop(
        begin,
        end,
        lambda n, best: _sort_in(score(n), n * width, best),
        tuple((part,) * sizes.num_selected for part in none),
    )

    def add(n, total):
        return total + jnp.exp(score(n) - highest[:, None]).sum(1)

    highest = jnp.maximum(values[0], NOTHING_LOGIT)
    second_end = end
    if not with_probability:
        lowest = values[0]
        for value in values[1:]:
            lowest = jnp.where(value > NO_SCORE, value, lowest)
        sure = _surely_probable(values[0], values[0] - lowest, queries, interpret)
        sure |= values[0] <= NO_SCORE
        second_end = begin + (end - begin) * jnp.where(sure, 0, 1).max()
    total = jnp.exp(NOTHING_LOGIT - highest)
    total = jax.lax.fori_loop(begin, second_end, add, total)
    inverse_total = 1.0 / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    for n in range(sizes.num_selected):
        probability = jnp.exp(values[n] - highest) * inverse_total
        keep = (values[n] > NO_SCORE) & (probability > LEAST_PROBABILITY)
        if not with_probability:
            keep = (values[n] > NO_SCORE) & (sure | keep)
        _write(out["slots"], queries, n, jnp.where(keep, slots[n], -1), sizes)
        if with_probability:
            _write(out["probability"], queries, n, jnp.where(keep, probability, 0.0), sizes)
    if with_probability:
        write(out["highest"], queries.row, queries.real, highest)
        write(out["inverse_total"], queries.row, queries.real, inverse_total)


def _write(ref, queries: Queries, n: int, value, sizes: SelectionSizes) -> None:
    """Writes what belongs to the n-th choice of each query."""
    write(ref, queries.row * sizes.num_selected + n, queries.real, value)


def _surely_probable(best, spread, queries: Queries, interpret: bool):
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


def selection_forward(
    x: Inputs, sizes: SelectionSizes, batch: int, *, with_probability: bool, interpret: bool
):
    """Launches `selection_forward_kernel`.

    Returns:
      A dict: "slots" int32[B * L * G * N], and where asked for "probability" f32 likewise, and
      "highest" and "inverse_total" f32[B * L * G]: P = exp(score - highest) * inverse_total.
    """
    rows = x.queries.shape[0] // (sizes.members or 1)
    chosen = rows * sizes.num_selected
    outputs = {"slots": jax.ShapeDtypeStruct((chosen,), jnp.int32)}
    if with_probability:
        outputs["probability"] = jax.ShapeDtypeStruct((chosen,), jnp.float32)
        outputs["highest"] = jax.ShapeDtypeStruct((rows,), jnp.float32)
        outputs["inverse_total"] = jax.ShapeDtypeStruct((rows,), jnp.float32)
    return launch(
        selection_forward_kernel,
        x,
        outputs,
        name="selection_forward",
        programs=batch * sizes.kv_heads * pl.cdiv(sizes.length, sizes.tiles.queries),
        interpret=interpret,
        sizes=sizes,
        with_probability=with_probability,
        **sizes.launch,
    )
