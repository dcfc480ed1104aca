"""Kernels of the selection's gradient: the softmax over all candidates, streamed.

Only the selected blocks' probabilities have a cotangent, so the gradient of a score is
P * (d_P - delta) with d_P zero but at N slots and `delta` the sum of P * d_P over them. One kernel
walks the queries and one the summary keys; each computes the scores again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.block_selection.scores import (
    Queries,
    ScoreInputs,
    SelectionSizes,
    Slots,
    hide,
    place,
    products,
    read_keys,
    read_queries,
    slot_range,
)
from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.triton_tools import dot, launch, read, write


class Chosen(NamedTuple):
    """What the forward pass chose, and its cotangent.

    Attributes:
      slots: int32[B * L * G * N].
      d_probability: f32[B * L * G * N].
      delta: f32[B * L * G], sum of probability * d_probability.
      highest: f32[B * L * G], where P = exp(score - highest) * inverse_total.
      inverse_total: f32[B * L * G]; apart, as a sum of the two would round off what P needs.
    """

    slots: Any
    d_probability: Any
    delta: Any
    highest: Any
    inverse_total: Any


def _d_scores(
    queries: Queries,
    slots: Slots,
    first_slot,
    keys,
    chosen: Chosen,
    sizes: SelectionSizes,
    interpret: bool,
):
    """Gradient of the scores of a tile of queries and a tile of slots."""
    highest, inverse_total, delta = (
        read(x, queries.row, queries.real)[:, None]
        for x in (chosen.highest, chosen.inverse_total, chosen.delta)
    )
    found = products(queries, keys, interpret, transpose=True)
    found = hide(queries, slots, first_slot, found, MASKED)
    probability = jnp.exp(found - highest) * inverse_total
    d_probability = jnp.zeros(probability.shape, jnp.float32)
    slot = first_slot + jax.lax.broadcasted_iota(jnp.int32, probability.shape, 1)
    for n in range(sizes.num_selected):
        at = queries.row * sizes.num_selected + n
        selected = read(chosen.slots, at, queries.real, other=-1)
        cotangent = read(chosen.d_probability, at, queries.real)
        d_probability += jnp.where(selected[:, None] == slot, cotangent[:, None], 0.0)
    return probability * (d_probability - delta)


def selection_queries_kernel(x, out, *, sizes: SelectionSizes, interpret: bool):
    """Finds the gradient of a tile of mean queries."""
    x, chosen = x
    tiles = pl.cdiv(sizes.length, sizes.tiles.queries)
    tile, b, g = place(tiles, sizes.kv_heads, last_first=True)
    queries = read_queries(x, tile * sizes.tiles.queries, b, g, sizes)
    slots, width = slot_range(x, tile * sizes.tiles.queries, b, sizes), sizes.tiles.slots

    def step(n, d_query):
        _, _, keys = read_keys(x, n * width, b, g, sizes)
        d_scores = _d_scores(queries, slots, n * width, keys, chosen, sizes, interpret)
        return d_query + dot(d_scores.astype(keys.dtype), keys, interpret)

    d_query = jnp.zeros(queries.pieces[0].shape, jnp.float32)
    d_query = jax.lax.fori_loop(slots.begin // width, pl.cdiv(slots.end, width), step, d_query)
    write(out, queries.row, queries.real, d_query)


def selection_keys_kernel(x, out, *, sizes: SelectionSizes, interpret: bool):
    """Finds the gradient of a tile of summary keys, walking all queries that may score them."""
    x, chosen = x
    tiles = pl.cdiv(sizes.slots, sizes.tiles.slots)
    tile, b, g = place(tiles, sizes.kv_heads, last_first=False)
    first_slot = tile * sizes.tiles.slots
    slot, row, keys = read_keys(x, first_slot, b, g, sizes)

    def step(n, d_keys):
        queries = read_queries(x, n * sizes.tiles.queries, b, g, sizes)
        slots = slot_range(x, n * sizes.tiles.queries, b, sizes)
        d_scores = _d_scores(queries, slots, first_slot, keys, chosen, sizes, interpret)
        d_scores = d_scores.astype(keys.dtype)
        return d_keys + dot(d_scores, queries.pieces[0], interpret, transpose_a=True)

    # The block of slot w begins at token w * S or later, and only later queries score it.
    begin = tile * sizes.tiles.slots * sizes.block_size // sizes.tiles.queries
    end = pl.cdiv(sizes.length, sizes.tiles.queries)
    d_keys = jax.lax.fori_loop(begin, end, step, jnp.zeros(keys.shape, jnp.float32))
    write(out, row, slot < sizes.slots, d_keys)


def selection_queries(
    x: ScoreInputs, chosen: Chosen, sizes: SelectionSizes, batch, interpret: bool
):
    """Launches `selection_queries_kernel`; returns the gradient of the mean queries."""
    return launch(
        selection_queries_kernel,
        (x, chosen),
        jax.ShapeDtypeStruct(x.queries.shape, jnp.float32),
        name="selection_queries",
        programs=batch * sizes.kv_heads * pl.cdiv(sizes.length, sizes.tiles.queries),
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )


def selection_keys(x: ScoreInputs, chosen: Chosen, sizes: SelectionSizes, batch, interpret: bool):
    """Launches `selection_keys_kernel`; returns the gradient of the summary keys, f32."""
    return launch(
        selection_keys_kernel,
        (x, chosen),
        jax.ShapeDtypeStruct(x.summary_keys.shape, jnp.float32),
        name="selection_keys",
        programs=batch * sizes.kv_heads * pl.cdiv(sizes.slots, sizes.tiles.slots),
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
