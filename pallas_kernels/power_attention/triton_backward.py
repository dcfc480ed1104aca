"""Gradients of the keys near a query: the short-term path, and the long-term path's own block.

Two kernels, neither of which adds to memory that another program writes: one walks the queries and
finds their gradient, one walks the keys and finds theirs. A path's weight, gate included, is
exp(logit - log_total), and the gradient of a logit is weight * (d_out . value - mean), with `mean`
the product of d_out and the path's own output. So both paths, gated or not, are one sum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.power_attention.near import NearSizes, allowed_near, token_range
from pallas_kernels.triton_tools import (
    Tile,
    dot,
    key_rows,
    launch,
    query_tile,
    read,
    to_matrix,
    write,
)


class PathTotals(NamedTuple):
    """What the backward pass needs of a path, f32[B * L * H] each.

    Attributes:
      log_total: log-sum-exp of the logits less the logarithm of the gate; `NOTHING` for no key.
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


def _weights(x: Inputs, tile: Tile, logits, d_weights, allowed):
    """Weights and gradients of logits, [rows] or [rows, keys], summed over the paths."""
    total_weight = total_gradient = jnp.zeros(logits.shape, jnp.float32)
    for name, totals in x.totals.items():
        log_total = read(totals.log_total, tile.row, tile.real)
        mean = read(totals.mean, tile.row, tile.real)
        if logits.ndim == 2:
            log_total, mean = log_total[:, None], mean[:, None]
        weight = jnp.exp(jnp.where(allowed[name], logits - log_total, MASKED))
        total_weight += weight
        total_gradient += weight * (d_weights - mean)
    return total_weight, total_gradient


def near_queries_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradient of `sizes.tokens` tokens' query heads of one key/value head."""
    heads, columns = sizes.heads, x.q.shape[1]
    first, b, g = sizes.place(pl.program_id(0))
    tile = query_tile(x.positions, first, sizes.tokens, b, g, heads)
    q, d_out = (read(ref, tile.row, tile.real, columns=columns) for ref in (x.q, x.d_out))

    def band(n, d_q):
        token = token_range(first - sizes.behind + n * sizes.keys, sizes.keys)
        real = (token >= 0) & (token < heads.length)
        rows = key_rows(token, b, g, heads)
        keys, values = (read(ref, rows, real, columns=columns) for ref in (x.k, x.v))
        logits = dot(q, keys, interpret, transpose_b=True) * sizes.scale
        d_weights = dot(d_out, values, interpret, transpose_b=True)
        allowed = {name: allowed_near(name, tile, token, sizes) for name in sizes.paths}
        _, d_logits = _weights(x, tile, logits, d_weights, allowed)
        return d_q + dot(d_logits.astype(keys.dtype), keys, interpret)

    d_q = jnp.zeros((tile.row.size, columns), jnp.float32)
    d_q = jax.lax.fori_loop(0, (sizes.behind + sizes.tokens) // sizes.keys, band, d_q)
    if "short" in x.totals:
        short = x._replace(totals={"short": x.totals["short"]})
        wide_q, wide_d_out = q.astype(jnp.float32), d_out.astype(jnp.float32)
        for distance in sizes.distances:
            allowed = tile.position >= distance
            rows = key_rows(tile.token - distance, b, g, heads)
            keys = read(x.k, rows, allowed, columns=columns).astype(jnp.float32)
            values = read(x.v, rows, allowed, columns=columns).astype(jnp.float32)
            logit = (wide_q * keys).sum(1) * sizes.scale
            d_weight = (wide_d_out * values).sum(1)
            _, d_logit = _weights(short, tile, logit, d_weight, {"short": allowed})
            d_q += d_logit[:, None] * keys
    d_q *= sizes.scale
    for n in range(sizes.num_selected if x.parts else 0):
        slots, d_parts = x.parts
        pair = (tile.row // heads.group) * sizes.num_selected + n
        chosen = tile.real & (read(slots, pair, tile.real, other=-1) >= 0)
        row = pair * heads.group + tile.row % heads.group
        d_q += read(d_parts, row, chosen, columns=columns).astype(jnp.float32)
    write(out, tile.row, tile.inside, d_q)


def near_keys_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradients of `sizes.tokens` tokens' key and value of one key/value head."""
    heads, columns = sizes.heads, x.q.shape[1]
    first, b, g = sizes.place(pl.program_id(0))
    token = token_range(first, sizes.tokens)
    inside = token < heads.length
    rows = key_rows(token, b, g, heads)
    keys, values = (read(ref, rows, inside, columns=columns) for ref in (x.k, x.v))

    def band(n, carry):
        d_k, d_v = carry
        begin = first + n * sizes.keys
        tile = query_tile(x.positions, begin, sizes.keys, b, g, heads)
        q, d_out = (read(ref, tile.row, tile.real, columns=columns) for ref in (x.q, x.d_out))
        logits = dot(q, keys, interpret, transpose_b=True) * sizes.scale
        d_weights = dot(d_out, values, interpret, transpose_b=True)
        allowed = {name: allowed_near(name, tile, token, sizes) for name in sizes.paths}
        weights, d_logits = _weights(x, tile, logits, d_weights, allowed)
        d_k += dot(d_logits.astype(q.dtype), q, interpret, transpose_a=True)
        d_v += dot(weights.astype(q.dtype), d_out, interpret, transpose_a=True)
        return d_k, d_v

    d_k = d_v = jnp.zeros((sizes.tokens, columns), jnp.float32)
    d_k, d_v = jax.lax.fori_loop(
        0, (sizes.tokens + sizes.behind) // sizes.keys, band, (d_k, d_v)
    )
    if "short" in x.totals and sizes.distances:
        far_k, far_v = _shifted_keys(x, first, b, g, sizes)
        d_k, d_v = d_k + far_k, d_v + far_v
    d_k *= sizes.scale
    if x.parts:
        position = read(x.positions, b * heads.length + token, inside, other=-1)
        offset = position % sizes.block_size
        last = token - offset + sizes.block_size - 1
        at_last = read(x.positions, b * heads.length + last, last < heads.length, other=-1)
        whole = (position >= 0) & (at_last == position - offset + sizes.block_size - 1)
        slots = pl.cdiv(heads.length, sizes.block_size)
        block = (b * heads.kv_heads + g) * slots + (token - offset) // sizes.block_size
        row = block * sizes.block_size + offset
        d_k += read(x.parts[0], row, whole, columns=columns).astype(jnp.float32)
        d_v += read(x.parts[1], row, whole, columns=columns).astype(jnp.float32)
    write(out[0], rows, inside, d_k)
    write(out[1], rows, inside, d_v)


def _shifted_keys(x: Inputs, first, b, g, sizes: NearSizes):
    """Adds up what queries a power of two ahead give to a tile of keys and of values."""
    heads, columns = sizes.heads, x.q.shape[1]
    here = query_tile(x.positions, first, sizes.tokens, b, g, heads)
    rows = key_rows(here.token, b, g, heads)
    keys = read(x.k, rows, here.real, columns=columns).astype(jnp.float32)
    values = read(x.v, rows, here.real, columns=columns).astype(jnp.float32)
    short = x._replace(totals={"short": x.totals["short"]})
    d_k = d_v = jnp.zeros(keys.shape, jnp.float32)
    for distance in sizes.distances:
        tile = query_tile(x.positions, first + distance, sizes.tokens, b, g, heads)
        allowed = tile.position >= distance
        q = read(x.q, tile.row, allowed, columns=columns).astype(jnp.float32)
        d_out = read(x.d_out, tile.row, allowed, columns=columns).astype(jnp.float32)
        logit = (q * keys).sum(1) * sizes.scale
        d_weight = (d_out * values).sum(1)
        weight, d_logit = _weights(short, tile, logit, d_weight, {"short": allowed})
        d_k += d_logit[:, None] * q
        d_v += weight[:, None] * d_out
    by_member = (sizes.tokens, heads.padded_group, columns)
    return d_k.reshape(by_member).sum(1), d_v.reshape(by_member).sum(1)


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
