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

from pallas_kernels.block_selection.columns import NO_SCORE, over_columns
from pallas_kernels.block_selection.reference import LEAST_PROBABILITY, NOTHING_LOGIT
from pallas_kernels.block_selection.scores import (
    Inputs,
    Queries,
    SelectionSizes,
    place,
    read_keys,
    read_queries,
    scores,
    slot_range,
)
from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.triton_tools import launch, write

LEAST_TILES = 3  # of slots, from which on columns are faster than sorting in


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
    queries = read_queries(x, tile * sizes.tiles.queries, b, g, sizes)
    begin, end = slot_range(queries, sizes)

    def score(*numbers):
        read = [read_keys(x, n * sizes.tiles.slots, b, g, sizes) for n in numbers]
        return scores(queries, [(slot, keys) for slot, *_, keys in read], interpret)

    def sort():
        _select_sorted(score, begin, end, queries, out, sizes, with_probability)

    if with_probability or not sizes.by_columns:
        sort()
        return

    def by_columns():
        pairs = begin // 2, pl.cdiv(end, 2)
        found = over_columns(lambda n: score(2 * n, 2 * n + 1), *pairs, sizes)
        for n, (slot, value) in enumerate(zip(found.slots, found.values, strict=True)):
            _write(out["slots"], queries, n, jnp.where(value > NO_SCORE, slot, -1), sizes)
        clear = found.clear & _surely_probable(found.values, queries, sizes.rounding)
        return jnp.where(clear, 1, 0).min()

    few, never = end - begin < LEAST_TILES, jnp.minimum(begin, 0)  # 0, which must not be a literal
    done = jax.lax.cond(few, lambda never: never, lambda _: by_columns(), never)
    pl.when(done == 0)(sort)


def _select_sorted(
    score, begin, end, queries: Queries, out, sizes: SelectionSizes, with_probability: bool
):
    """Selects by sorting in one tile of slots after the other."""
    none = jnp.full(queries.row.shape, MASKED, jnp.float32), jnp.full_like(queries.row, -1)
    values, slots = jax.lax.fori_loop(
        begin,
        end,
        lambda n, best: _sort_in(score(n)[0], n * sizes.tiles.slots, best),
        tuple((part,) * sizes.num_selected for part in none),
    )

    def add(n, total):
        return total + jnp.exp(score(n)[0] - highest[:, None]).sum(1)

    highest = jnp.maximum(values[0], NOTHING_LOGIT)
    second_end = end
    if not with_probability:
        sure = _surely_probable(values, queries)
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


def _surely_probable(values, queries: Queries, rounding: float = 0.0):
    """Tells which queries' choices are all above the least probability, whatever else there is.

    The probability of a score is at least exp(score - best) / (candidates + 1).

    Args:
      values: scores of the choices, best first.
      queries: their queries.
      rounding: bound of the values' own relative error.
    """
    best, lowest = values[0], values[0]
    for value in values[1:]:
        lowest = jnp.where(value > NO_SCORE, value, lowest)
    count = queries.number.astype(jnp.float32) + 1.0
    margin = -math.log(LEAST_PROBABILITY) - 0.01  # spares the rounding of the logarithm
    lost = rounding * (jnp.abs(best) + jnp.abs(lowest))
    enough = (best - lowest + lost + jnp.log(count) < margin) & (best > NOTHING_LOGIT)
    return enough | (best <= NO_SCORE)


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
