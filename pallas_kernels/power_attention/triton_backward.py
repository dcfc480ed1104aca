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

from pallas_kernels.power_attention.near import NearSizes, band_bias, shifted
from pallas_kernels.triton_tools import (
    NOTHING,
    Tile,
    dot,
    exp2,
    fma,
    launch,
    read,
    read_tile,
    write,
)


class PathTotals(NamedTuple):
    """What the backward pass needs of a path, f32[B * L * H] each.

    Attributes:
      log_total: log-sum-exp of the logits less the gate's logarithm, as a power of two; `NOTHING`
        where there is no key.
      mean: d_out times the path's output, summed over the head.
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


class Head(NamedTuple):
    """One query head of a tile of tokens: q and d_out [queries, D], and `PathTotals` by path."""

    q: Any
    d_out: Any
    totals: dict[str, PathTotals]


def _read_head(x: Inputs, row, real, paths) -> Head:
    totals = {
        name: PathTotals(
            read(x.totals[name].log_total, row, real, other=NOTHING),
            read(x.totals[name].mean, row, real),
        )
        for name in paths
    }
    q, d_out = (read(ref, row, real, columns=x.q.shape[1]) for ref in (x.q, x.d_out))
    return Head(q, d_out, totals)


def _band(head: Head, keys, values, bias, sizes: NearSizes, interpret: bool):
    """Weights and gradients of the logits of a band, summed over the paths: [queries, keys]."""
    scale = jnp.float32(sizes.log2_scale)
    scores = dot(head.q, keys, interpret, transpose_b=True)
    d_weights = dot(head.d_out, values, interpret, transpose_b=True)
    weights, d_logits = 0.0, jnp.float32(0)
    for name, totals in head.totals.items():
        shift = bias[name] - totals.log_total[:, None]
        weight = exp2(fma(scores, scale, shift, interpret), interpret)
        weights += weight
        d_logits = fma(weight, d_weights - totals.mean[:, None], d_logits, interpret)
    return weights, d_logits


def _single(head: Head, key, value, sizes: NearSizes, interpret: bool):
    """Weight and gradient of the logit of one key for each query, [queries, 1] each; q in f32."""
    totals, scale = head.totals["short"], jnp.float32(sizes.log2_scale)
    logit = fma((head.q * key).sum(1), scale, -totals.log_total, interpret)
    weight = exp2(logit, interpret)
    d_logit = weight * ((head.d_out * value).sum(1) - totals.mean)
    return weight[:, None], d_logit[:, None]


def _widened(head: Head) -> Head:
    """Converts q and d_out to f32."""
    return head._replace(q=head.q.astype(jnp.float32), d_out=head.d_out.astype(jnp.float32))


def near_queries_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradient of `sizes.tokens` tokens' query heads of one key/value head."""
    heads, columns = sizes.heads, x.q.shape[1]
    first, b, g = sizes.place(pl.program_id(0))
    tile = read_tile(x.positions, first, sizes.tokens, b, g, heads)
    band = read_tile(x.positions, first - sizes.tokens, 2 * sizes.tokens, b, g, heads)
    keys, values = (read(ref, band.row, band.inside, columns=columns) for ref in (x.k, x.v))
    bias = band_bias(tile.position, tile.token[:, None] - band.token[None, :], sizes)

    def find(step, _):
        members = sizes.members(step)
        rows = [tile.row * heads.group + member for member in members]
        group = [_read_head(x, row, tile.inside, sizes.paths) for row in rows]
        wide = [_widened(head) for head in group]
        d_q = []
        for head in group:
            _, d_logits = _band(head, keys, values, bias, sizes, interpret)
            d_q.append(dot(d_logits.astype(keys.dtype), keys, interpret))

        def add_shifted(n, d_q):
            key_rows, seen = shifted(n, tile, heads, sizes)
            key, value = (
                read(ref, key_rows, seen, columns=columns).astype(jnp.float32)
                for ref in (x.k, x.v)
            )
            # A key that is not attended was read as 0, so its weight does not matter.
            return [
                fma(_single(head, key, value, sizes, interpret)[1], key, d_query, interpret)
                for head, d_query in zip(wide, d_q, strict=True)
            ]

        if "short" in sizes.paths:
            d_q = jax.lax.fori_loop(0, sizes.shifts, add_shifted, d_q)
        d_q = [d_query * sizes.scale for d_query in d_q]

        def add_selected(n, d_q):
            pair = tile.row * sizes.num_selected + n
            chosen = read(x.parts[0], pair, tile.inside, other=-1) >= 0
            part_rows = [pair * heads.group + member for member in members]
            return [
                d_query + read(x.parts[1], row, chosen, columns=columns).astype(jnp.float32)
                for row, d_query in zip(part_rows, d_q, strict=True)
            ]

        if x.parts:
            d_q = jax.lax.fori_loop(0, sizes.num_selected, add_selected, d_q)
        for row, d_query in zip(rows, d_q, strict=True):
            write(out, row, tile.inside, d_query)

    jax.lax.fori_loop(0, sizes.steps, find, None)


def near_keys_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradients of `sizes.tokens` tokens' key and value of one key/value head."""
    heads, columns = sizes.heads, x.q.shape[1]
    first, b, g = sizes.place(pl.program_id(0))
    tile = read_tile(x.positions, first, sizes.tokens, b, g, heads)
    band = read_tile(x.positions, first, 2 * sizes.tokens, b, g, heads)
    keys, values = (read(ref, tile.row, tile.inside, columns=columns) for ref in (x.k, x.v))
    bias = band_bias(band.position, band.token[:, None] - tile.token[None, :], sizes)
    wide_keys, wide_values = keys.astype(jnp.float32), values.astype(jnp.float32)

    def add_band(member, carry):
        d_k, d_v = carry
        row = band.row * heads.group + member
        head = _read_head(x, row, band.inside, sizes.paths)
        weights, d_logits = _band(head, keys, values, bias, sizes, interpret)
        d_k += dot(d_logits.astype(head.q.dtype), head.q, interpret, transpose_a=True)
        d_v += dot(weights.astype(head.q.dtype), head.d_out, interpret, transpose_a=True)
        return d_k, d_v

    def add_shifted(n, carry):
        d_k, d_v = carry
        distance = jax.lax.shift_left(jnp.int32(2 * sizes.tokens), jnp.int32(n))
        ahead = read_tile(x.positions, first + distance, sizes.tokens, b, g, heads)
        for member in range(heads.group):
            row, seen = ahead.row * heads.group + member, ahead.position >= distance
            head = _widened(_read_head(x, row, seen, ["short"]))
            weight, d_logit = _single(head, wide_keys, wide_values, sizes, interpret)
            d_k = fma(d_logit, head.q, d_k, interpret)
            d_v = fma(weight, head.d_out, d_v, interpret)
        return d_k, d_v

    zero = jnp.zeros((sizes.tokens, columns), jnp.float32)
    carry = jax.lax.fori_loop(0, heads.group, add_band, (zero, zero))
    if "short" in sizes.paths:
        carry = jax.lax.fori_loop(0, sizes.shifts, add_shifted, carry)
    d_k, d_v = carry
    d_k *= sizes.scale
    if x.parts:
        row, whole = _block_rows(x.positions, tile, b, g, sizes)
        d_k += read(x.parts[0], row, whole, columns=columns).astype(jnp.float32)
        d_v += read(x.parts[1], row, whole, columns=columns).astype(jnp.float32)
    write(out[0], tile.row, tile.inside, d_k)
    write(out[1], tile.row, tile.inside, d_v)


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
    """Launches `near_queries_kernel`; returns the gradient of q as [B * L * H, D]."""
    return launch(
        near_queries_kernel,
        x,
        jax.ShapeDtypeStruct(x.q.shape, x.q.dtype),
        name="near_queries",
        programs=sizes.programs(batch),
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
