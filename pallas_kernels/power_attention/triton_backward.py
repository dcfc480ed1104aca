"""Gradients of the keys near a query: the short-term path, and the long-term path's own block.

Two kernels, neither of which adds to memory that another program writes: one walks the queries and
finds their gradient, one walks the keys and finds theirs. A path's weight, gate included, is
exp2(logit - log_total), and the gradient of a logit is weight * (d_out . value - mean), with `mean`
the product of d_out and the path's own output. So both paths, gated or not, are one sum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.power_attention.attended import attended
from pallas_kernels.power_attention.near import (
    NearSizes,
    band_bias,
    read_keys,
    read_parts,
    shift,
)
from pallas_kernels.triton_tools import (
    NOTHING,
    Tile,
    dot,
    exp2,
    fma,
    hold,
    launch,
    read,
    read_tile,
    reciprocal,
    write,
)


class PathTotals(NamedTuple):
    """What the backward pass needs of a path, [B * L * H] each.

    Attributes:
      log_total: f32, log-sum-exp of the logits less the gate's logarithm, as a power of two;
        `NOTHING` where there is no key.
      mean: d_out times the path's output, summed over the head; None where it is yet to be found.
    """

    log_total: Any
    mean: Any


class Inputs(NamedTuple):
    """Arrays of the kernels.

    Attributes:
      q: [B * L * H, D].
      k: [B * L * G, D].
      v: [B * L * G, D].
      d_out: [B * L * H, D].
      positions: int32[B * L].
      totals: `PathTotals` by path.
      parts: gradients of the selected blocks to add. For queries [pairs * R, D], with the slots;
        for keys and values [B * G * slots * S, D] by slot. None where there are none.
    """

    q: Any
    k: Any
    v: Any
    d_out: Any
    positions: Any
    totals: dict[str, PathTotals]
    parts: Any


class Queries(NamedTuple):
    """A tile of query heads: q and d_out [rows, D], and `PathTotals` [rows] by path."""

    q: Any
    d_out: Any
    totals: dict[str, PathTotals]


def read_mean(totals: PathTotals, row, real):
    """Reads what was found of the mean, if it was."""
    if totals.mean is None:
        return None
    return read(totals.mean, row, real).astype(jnp.float32)


def _read_queries(x: Inputs, row, real, paths) -> Queries:
    totals = {
        name: PathTotals(
            read(x.totals[name].log_total, row, real, other=NOTHING),
            read_mean(x.totals[name], row, real),
        )
        for name in paths
    }
    q, d_out = (read(ref, row, real, columns=x.q.shape[1]) for ref in (x.q, x.d_out))
    return Queries(q, d_out, totals)


def _band(queries: Queries, keys, values, bias, sizes: NearSizes, interpret: bool):
    """Weights and gradients of the logits of a band, summed over the paths: [rows, keys]."""
    scale = jnp.float32(sizes.log2_scale)
    scores = dot(queries.q, keys, interpret, transpose_b=True)
    d_weights = dot(queries.d_out, values, interpret, transpose_b=True)
    weights, d_logits = 0.0, jnp.float32(0)
    for name, totals in queries.totals.items():
        shift = bias[name] - totals.log_total[:, None]
        weight = exp2(fma(scores, scale, shift, interpret), interpret)
        weights += weight
        d_logits = fma(weight, d_weights - totals.mean[:, None], d_logits, interpret)
    return weights, d_logits


def _single(queries: Queries, key, value, sizes: NearSizes, interpret: bool):
    """Weight and gradient of the logit of one key for each query, [rows, 1] each."""
    totals, scale = queries.totals["short"], jnp.float32(sizes.log2_scale)
    q, d_out = queries.q.astype(jnp.float32), queries.d_out.astype(jnp.float32)
    logit = fma((q * key).sum(1), scale, -totals.log_total, interpret)
    weight = exp2(logit, interpret)
    d_logit = weight * ((d_out * value).sum(1) - totals.mean)
    return weight[:, None], d_logit[:, None]


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
        d_logits = weights["long"] * (d_weights - queries.totals["long"].mean[:, None])
    return _Product(keys, d_weights, weights.get("short"), d_logits)


def near_queries_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradient of `sizes.tokens` tokens' query heads of one key/value head.

    `out` has "q" [B * L * H, D], and "mean" [B * L * H] of the short-term path, see
    `PathTotals`: all its keys are here, so its output need not be kept.
    """
    heads, columns = sizes.heads, x.q.shape[1]
    program = pl.program_id(0)
    place, part = sizes.place(program // sizes.parts), program % sizes.parts
    first, b, g = place
    tile = read_tile(x.positions, first, sizes.tokens, b, g, heads, sizes.members, part)
    index = tile.token - first
    keys = [read_keys(x, n, place, sizes) for n in range(len(sizes.products))]
    queries = _read_queries(x, tile.row, tile.position >= 0, sizes.paths)
    selected = _selected(x, tile, sizes) if x.parts else 0.0
    products = [
        _product(
            [hold(found, program) for found in tiles],
            attended(tile.position, index, n, sizes),
            queries,
            sizes,
            interpret,
        )
        for n, tiles in enumerate(keys)
    ]
    if "short" in sizes.paths:
        total = sum(product.weights.sum(1) for product in products)
        weighted = sum((product.weights * product.d_weights).sum(1) for product in products)
        mean = weighted * reciprocal(jnp.where(total > 0, total, 1.0), interpret)
        write(out["mean"], tile.row, tile.inside, mean)
    d_q = jnp.zeros((tile.row.size, columns), jnp.float32)
    for keys, d_weights, weights, d_logits in products:
        d_logits = 0.0 if d_logits is None else d_logits
        if weights is not None:
            d_logits = fma(weights, d_weights - mean[:, None], jnp.float32(d_logits), interpret)
        d_q += dot(d_logits.astype(keys.dtype), keys, interpret)
    d_q *= sizes.scale
    write(out["q"], tile.row, tile.inside, d_q + selected)


def _selected(x: Inputs, tile: Tile, sizes: NearSizes):
    """Adds up the gradients that the selected blocks give a tile of queries."""
    slots, parts = x.parts

    def some(n):
        (found,) = read_parts([(parts, 0.0)], tile, slots, n, sizes)
        return found.astype(jnp.float32).sum(0)

    return jax.lax.fori_loop(1, sizes.part_steps, lambda n, total: total + some(n), some(0))


def near_keys_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradients of `sizes.tokens` tokens' key and value of one key/value head."""
    heads, columns = sizes.heads, x.q.shape[1]
    first, b, g = sizes.place(pl.program_id(0))
    tile = read_tile(x.positions, first, sizes.tokens, b, g, heads.single)
    real = tile.position >= 0
    keys, values = (read(ref, tile.row, real, columns=columns) for ref in (x.k, x.v))

    def add_band(n, carry):
        d_k, d_v = carry
        step, part = jax.lax.div(n, sizes.parts), jax.lax.rem(n, sizes.parts)
        begin = first + step * sizes.tokens
        band = read_tile(x.positions, begin, sizes.tokens, b, g, heads, sizes.members, part)
        bias = band_bias(band.position, band.token[:, None] - tile.token[None, :], sizes)
        queries = _read_queries(x, band.row, band.position >= 0, sizes.paths)
        weights, d_logits = _band(queries, keys, values, bias, sizes, interpret)
        dtype = queries.q.dtype
        d_k += dot(d_logits.astype(dtype), queries.q, interpret, transpose_a=True)
        d_v += dot(weights.astype(dtype), queries.d_out, interpret, transpose_a=True)
        return d_k, d_v

    zero = jnp.zeros((sizes.tokens, columns), jnp.float32)
    steps = (1 + sizes.behind // sizes.tokens) * sizes.parts
    d_k, d_v = jax.lax.fori_loop(0, steps, add_band, (zero, zero))
    if "short" in sizes.paths and sizes.shifts:
        far_k, far_v = _shifted_keys(x, first, b, g, sizes, interpret)
        d_k, d_v = d_k + far_k, d_v + far_v
    d_k *= sizes.scale
    if x.parts:
        row, whole = _block_rows(x.positions, tile, b, g, sizes)
        d_k += read(x.parts[0], row, whole, columns=columns).astype(jnp.float32)
        d_v += read(x.parts[1], row, whole, columns=columns).astype(jnp.float32)
    write(out[0], tile.row, tile.inside, d_k)
    write(out[1], tile.row, tile.inside, d_v)


def _shifted_keys(x: Inputs, first, b, g, sizes: NearSizes, interpret: bool):
    """Adds up what the queries a power of two ahead give to a tile of keys and values."""
    heads, columns = sizes.heads, x.q.shape[1]
    here = read_tile(x.positions, first, sizes.tokens, b, g, heads, sizes.members)
    key, value = (
        read(ref, here.key_row, here.position >= 0, columns=columns).astype(jnp.float32)
        for ref in (x.k, x.v)
    )

    total = sizes.shifts * sizes.parts
    at_once = min((3, 4, 2), key=lambda n: pl.cdiv(total, n) * n)

    def read_ahead(n):
        step, part = jax.lax.div(n, sizes.parts), jax.lax.rem(n, sizes.parts)
        distance = shift(step, sizes)
        begin = jnp.where(n < total, first + distance, heads.length)
        ahead = read_tile(x.positions, begin, sizes.tokens, b, g, heads, sizes.members, part)
        return ahead.row, ahead.position >= distance

    def add(n, carry):
        d_k, d_v = carry
        rows = [read_ahead(n * at_once + i) for i in range(at_once)]
        for queries in [_read_queries(x, row, seen, ["short"]) for row, seen in rows]:
            weight, d_logit = _single(queries, key, value, sizes, interpret)
            d_k = fma(d_logit, queries.q.astype(jnp.float32), d_k, interpret)
            d_v = fma(weight, queries.d_out.astype(jnp.float32), d_v, interpret)
        return d_k, d_v

    zero = jnp.zeros(key.shape, jnp.float32)
    carry = jax.lax.fori_loop(0, pl.cdiv(total, at_once), add, (zero, zero))
    by_member = (sizes.tokens, pl.next_power_of_2(sizes.members), columns)
    return [total.reshape(by_member).sum(1) for total in carry]


def _block_rows(positions, tile: Tile, b, g, sizes: NearSizes):
    """Finds tokens in arrays by slot, [B * G * slots * S], and whether their block is complete."""
    length, size = sizes.heads.length, sizes.block_size
    offset = jax.lax.rem(jnp.maximum(tile.position, 0), size)
    to_last = size - 1 - offset
    last = tile.token + to_last
    at_last = read(positions, b * length + last, last < length, other=-1)
    whole = (tile.position >= 0) & (at_last == tile.position + to_last)
    slots = pl.cdiv(length, size)
    slot = (b * sizes.heads.kv_heads + g) * slots + (tile.token - offset) // size
    return slot * size + offset, whole


def near_queries(x: Inputs, sizes: NearSizes, batch: int, interpret: bool):
    """Launches `near_queries_kernel`; returns the gradient "q", and "mean" of the short path."""
    outputs = {"q": jax.ShapeDtypeStruct(x.q.shape, x.q.dtype)}
    if "short" in sizes.paths:
        outputs["mean"] = jax.ShapeDtypeStruct(x.q.shape[:1], x.q.dtype)
    return launch(
        near_queries_kernel,
        x,
        outputs,
        name="near_queries",
        programs=sizes.programs(batch) * sizes.parts,
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )


def near_keys(x: Inputs, sizes: NearSizes, batch: int, interpret: bool):
    """Launches `near_keys_kernel`; returns the gradients of k and v as [B * L * G, D]."""
    return launch(
        near_keys_kernel,
        x,
        (jax.ShapeDtypeStruct(x.k.shape, x.k.dtype),) * 2,
        name="near_keys",
        programs=sizes.programs(batch),
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
