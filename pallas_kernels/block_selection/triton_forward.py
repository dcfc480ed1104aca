"""Kernel that scores blocks and keeps the best N of each query, without writing a score.

A tile of queries streams over the summary keys. Where slots alone are asked for, what the best are
comes from the columns of columns.py. Where that leaves doubt, or the probability is asked for,
scores are sorted in by sorting.py, if they beat a query's worst choice so far.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.block_selection.columns import NO_KEY, over_columns, pairs_of
from pallas_kernels.block_selection.scores import (
    ScoreInputs,
    SelectionSizes,
    hide,
    place,
    read_queries,
    score_slots,
    slot_range,
    write_choice,
)
from pallas_kernels.block_selection.sorting import select_sorted, surely_probable
from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.triton_tools import launch

FLOOR_UNITS = 8  # more than two, in case both passes do not add up a product in the same order


def selection_forward_kernel(
    x: ScoreInputs, out, *, sizes: SelectionSizes, with_probability: bool, interpret: bool
):
    """Selects for a tile of queries: slots, and probabilities and log-sum-exp where asked for."""
    tiles = pl.cdiv(sizes.length, sizes.tiles.queries)
    tile, b, g = place(tiles, sizes.kv_heads, last_first=True)
    first = tile * sizes.tiles.queries
    if with_probability or not sizes.by_columns:
        select_sorted(x, (first, b, g), out, sizes, with_probability, interpret)
        return
    clear, floor, nothing = _select_by_columns(x, (first, b, g), out, sizes, interpret)

    @pl.when(clear == 0)
    def _():  # finds everything anew, so that no register holds it until here
        anew = first + nothing, b, g
        select_sorted(x, anew, out, sizes, with_probability, interpret, floor)


def _select_by_columns(x: ScoreInputs, at, out, sizes: SelectionSizes, interpret: bool):
    """Selects by columns.

    Returns:
      Whether that is sure for all queries; for each what its best N are above, or `MASKED`; and 0,
      but no literal.
    """
    first, b, g = at
    queries = read_queries(x, first, b, g, sizes)
    slots, width = slot_range(x, first, b, sizes), 2 * sizes.tiles.slots
    found = over_columns(
        lambda n: score_slots(x, queries, (n * width, width), b, g, sizes, interpret),
        lambda n, keys: hide(queries, slots, n * width, keys, NO_KEY),
        pairs_of(slots, sizes),
        queries.bound,
        sizes,
        interpret,
    )
    for n, slot in enumerate(found.slots):
        write_choice(out["slots"], queries, n, slot, sizes)
    spread = found.highest - found.lowest + 2 * found.unit
    sure = surely_probable(found.highest, spread, queries, interpret) | (queries.number == 0)
    floor = jnp.where(found.slots[-1] >= 0, found.lowest - FLOOR_UNITS * found.unit, MASKED)
    floor = jnp.where(floor > MASKED, floor, MASKED)  # neither where it overflows
    return jnp.where(found.clear & sure, 1, 0).min(), floor, jnp.minimum(slots.begin, 0)


def selection_forward(
    x: ScoreInputs, sizes: SelectionSizes, batch: int, *, with_probability: bool, interpret: bool
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
