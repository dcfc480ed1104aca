"""Kernel of the gradient of the queries, from the keys near them: see triton_backward.py."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.power_attention.attended import attended
from pallas_kernels.power_attention.backward_inputs import BackwardInputs, Queries, read_queries
from pallas_kernels.power_attention.near import (
    NearSizes,
    over_steps,
    read_keys,
    read_parts,
)
from pallas_kernels.triton_tools import (
    Tile,
    dot,
    exp2,
    fma,
    hold,
    launch,
    read_tile,
    reciprocal,
    write,
)


class _Product(NamedTuple):
    """A tile of keys and what its queries make of them: [rows, keys] but for `keys` [keys, D].

    Attributes:
      keys: of the tile.
      d_weights: d_out . value.
      weights: of the short-term path.
      d_logits: of the long-term path; None where it has no key.
    """

    keys: Any
    d_weights: Any
    weights: Any
    d_logits: Any


def _product(tiles, seen, queries: Queries, sizes: NearSizes, interpret: bool):
    keys, values = tiles
    scores = dot(queries.q, keys, interpret, transpose_b=True)
    d_weights = dot(queries.d_out, values, interpret, transpose_b=True)
    weights, scale = {}, jnp.float32(sizes.log2_scale)
    for name, allowed in seen.items():
        log_total = queries.totals[name].log_total[:, None]
        logits = fma(jnp.where(allowed, scores, MASKED), scale, -log_total, interpret)
        weights[name] = exp2(logits, interpret)
    d_logits = None
    if "long" in weights:
        d_logits = weights["long"] * (d_weights - queries.totals["long"].delta[:, None])
    return _Product(keys, d_weights, weights.get("short"), d_logits)


def near_queries_kernel(x: BackwardInputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradient of `sizes.tokens` tokens' query heads of one key/value head.

    `out` has "q" [B * L * H, D], and "delta" [B * L * H] of the short-term path, see
    `PathTotals`: all its keys are here, so its output need not be kept.
    """
    heads = sizes.heads
    program = pl.program_id(0)
    place, part = sizes.place(program // sizes.head_slices), program % sizes.head_slices
    first, b, g = place
    tile = read_tile(x.positions, first, sizes.tokens, b, g, heads, sizes.members, part)
    index = tile.token - first
    steps = sizes.steps(x.k)

    def read_step(step):
        return [read_keys(x, n, place, sizes) for n in sizes.numbers(step, steps)]

    keys = read_step(0) if steps == 1 else None  # ahead of all other reads
    queries = read_queries(x, tile.row, tile.position >= 0, sizes.paths)
    selected = _selected(x, tile, sizes) if x.parts else 0.0

    def meet(step, keys):
        return [
            _product(
                [hold(found, program) for found in tiles],
                attended(tile.position, index, n, sizes),
                queries,
                sizes,
                interpret,
            )
            for n, tiles in zip(sizes.numbers(step, steps), keys, strict=True)
        ]

    products = meet(0, keys) if steps == 1 else None

    def over_products(start, find):
        def find_step(step):
            return find(products or meet(step, read_step(step)))

        return over_steps(start, find_step, _add, steps)

    delta = None
    if "short" in sizes.paths:
        zero = jnp.zeros(tile.row.shape, jnp.float32)
        total, weighted = over_products((zero, zero), _sums)
        delta = weighted * reciprocal(jnp.where(total > 0, total, 1.0), interpret)
        write(out["delta"], tile.row, tile.inside, delta)
    zero = jnp.zeros((tile.row.size, x.q.shape[1]), jnp.float32)
    d_q = over_products(zero, lambda products: _gradient(products, delta, interpret))
    write(out["q"], tile.row, tile.inside, d_q * sizes.scale + selected)


def _sums(products):
    """Adds up the weights of the short-term path, and d_out . value by weight: [rows] each."""
    total = sum(product.weights.sum(1) for product in products)
    weighted = sum((product.weights * product.d_weights).sum(1) for product in products)
    return total, weighted


def _gradient(products, delta, interpret: bool):
    """Adds up d_logits . key over the products: [rows, D]."""
    d_q: Any = 0.0
    for keys, d_weights, weights, d_logits in products:
        d_logits = 0.0 if d_logits is None else d_logits
        if weights is not None:
            d_logits = fma(weights, d_weights - delta[:, None], jnp.float32(d_logits), interpret)
        d_q += dot(d_logits.astype(keys.dtype), keys, interpret)
    return d_q


def _add(some, more):
    return jax.tree.map(jnp.add, some, more)


def _selected(x: BackwardInputs, tile: Tile, sizes: NearSizes):
    """Adds up the gradients that the selected blocks give a tile of queries."""
    slots, parts = x.parts

    def some(n):
        (found,) = read_parts([(parts, 0.0)], tile, slots, n, sizes)
        return found.astype(jnp.float32).sum(0)

    return jax.lax.fori_loop(1, sizes.part_steps, lambda n, total: total + some(n), some(0))


def near_queries(x: BackwardInputs, sizes: NearSizes, batch: int, interpret: bool):
    """Launches `near_queries_kernel`; returns the gradient "q", and "delta" of the short path."""
    outputs = {"q": jax.ShapeDtypeStruct(x.q.shape, x.q.dtype)}
    if "short" in sizes.paths:
        outputs["delta"] = jax.ShapeDtypeStruct(x.q.shape[:1], x.q.dtype)
    return launch(
        near_queries_kernel,
        x,
        outputs,
        name="near_queries",
        programs=sizes.programs(batch) * sizes.head_slices,
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
