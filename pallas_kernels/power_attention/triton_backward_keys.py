"""Kernel of the gradients of keys and values, from queries near them: see triton_backward.py."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.power_attention.near import NearSizes, shift
from pallas_kernels.power_attention.triton_backward import Inputs, Queries, read_queries
from pallas_kernels.triton_tools import Tile, dot, exp2, fma, launch, read, read_tile, write


def _band_bias(position, distance, sizes: NearSizes):
    """Finds what to add to the logits of a band: 0, or `MASKED` where a path does not attend.

    Args:
      position: int32[rows] of query heads, -1 where there is no query.
      distance: int32[rows, keys], of the query from the key.
      sizes: static sizes.

    Returns:
      f32[rows, keys] by path.
    """
    ahead = distance.astype(jnp.uint32)  # a key ahead of its query becomes a great distance
    bias = {}
    if sizes.block_size:
        in_block = jnp.where(position >= 0, jax.lax.rem(position, sizes.block_size), -1)
        bias["long"] = ahead < (in_block + 1).astype(jnp.uint32)[:, None]
    if sizes.window:
        near = (distance < sizes.window) | ((distance & (distance - 1)) == 0)
        bias["short"] = near & (ahead < (position + 1).astype(jnp.uint32)[:, None])
    return {name: jnp.where(allowed, 0.0, MASKED) for name, allowed in bias.items()}


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


def near_keys_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradients of `sizes.tokens` tokens' key and value of one key/value head."""
    heads, columns = sizes.heads, x.q.shape[1]
    first, b, g = sizes.place(pl.program_id(0))
    tile = read_tile(x.positions, first, sizes.tokens, b, g, heads.single)
    real = tile.position >= 0
    d_k = d_v = jnp.zeros((sizes.tokens, columns), jnp.float32)
    if "short" in sizes.paths and sizes.shifts:
        d_k, d_v = _shifted_keys(x, first, b, g, sizes, interpret)
    keys, values = (read(ref, tile.row, real, columns=columns) for ref in (x.k, x.v))

    def add_band(n, carry):
        d_k, d_v = carry
        step, part = jax.lax.div(n, sizes.parts), jax.lax.rem(n, sizes.parts)
        begin = first + step * sizes.tokens
        band = read_tile(x.positions, begin, sizes.tokens, b, g, heads, sizes.members, part)
        bias = _band_bias(band.position, band.token[:, None] - tile.token[None, :], sizes)
        queries = read_queries(x, band.row, band.position >= 0, sizes.paths)
        weights, d_logits = _band(queries, keys, values, bias, sizes, interpret)
        dtype = queries.q.dtype
        d_k += dot(d_logits.astype(dtype), queries.q, interpret, transpose_a=True)
        d_v += dot(weights.astype(dtype), queries.d_out, interpret, transpose_a=True)
        return d_k, d_v

    steps = (1 + sizes.behind // sizes.tokens) * sizes.parts
    d_k, d_v = jax.lax.fori_loop(0, steps, add_band, (d_k, d_v))
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
    at_once = 1  # f32 has no registers to read more
    if x.q.dtype == jnp.bfloat16:
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
        for queries in [read_queries(x, row, seen, ["short"]) for row, seen in rows]:
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
