"""Gradients of keys and values from queries a power of two ahead, beyond the band: `near_keys`.

Each key meets one query of a distance, so nothing is multiplied as a matrix. Query heads are taken
one by one, [tokens, D] each: a thread holds the same token and columns of all of them.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.power_attention.near import NearSizes, shift
from pallas_kernels.power_attention.triton_backward import Inputs, PathTotals, Queries
from pallas_kernels.triton_tools import NOTHING, exp2, fma, fms, read, widen

HEADS_AT_ONCE = 4
SPLITS = 3  # of the columns in two: in bf16 a thread has 8 of them


def shifted_keys(x: Inputs, kv, place, sizes: NearSizes, interpret: bool):
    """Adds up what the queries a power of two ahead give to a tile of keys and values.

    Distances at which the whole tile would look past the end of the row are left out.

    Args:
      x: what is read.
      kv: the tile, [tokens, D] each.
      place: first token, batch row and key/value head of the tile.
      sizes: static sizes.
      interpret: see `launch`.

    Returns:
      Gradients of the keys, to be scaled, and of the values: f32[tokens, D] each.
    """
    heads, (first, b, _) = sizes.heads, place
    members = max(n for n in range(1, HEADS_AT_ONCE + 1) if heads.group % n == 0)
    parts = heads.group // members
    key, value = (_columns(widen(tile, interpret)) for tile in kv)
    fitting = jnp.maximum(heads.length - 1 - first, 0) // sizes.first_shift
    total = parts * jnp.minimum(32 - jax.lax.clz(fitting), sizes.shifts)

    def read_position(n):
        token = first + jnp.arange(sizes.tokens, dtype=jnp.int32) + _distance(n, parts, sizes)
        inside = (token < heads.length) & (n < total)
        return read(x.positions, b * heads.length + token, inside, other=-1)

    def add(n, carry):
        position, (d_k, d_v) = carry
        found = _read_ahead(x, n, position, place, (members, parts), sizes)
        position = read_position(n + 1)
        for queries in found:
            q, d_out = (_columns(widen(y, interpret)) for y in (queries.q, queries.d_out))
            totals = queries.totals["short"]
            weight, d_logit = _meet_ahead(totals, q, d_out, key, value, sizes, interpret)
            d_k = [fma(d_logit, y, total, interpret) for y, total in zip(q, d_k, strict=True)]
            d_v = [fma(weight, y, total, interpret) for y, total in zip(d_out, d_v, strict=True)]
        return position, (d_k, d_v)

    zero = [jnp.zeros(piece.shape, jnp.float32) for piece in key]
    start = read_position(jnp.int32(0)), (zero, zero)
    _, sums = jax.lax.fori_loop(jnp.int32(0), total, add, start)
    return [_joined(pieces) for pieces in sums]


def _distance(n, parts: int, sizes: NearSizes):
    return shift(jax.lax.div(n, parts), sizes)


def _read_ahead(x: Inputs, n, position, place, split, sizes: NearSizes):
    """Reads some query heads of the n-th (distance, part of the group), [tokens, D] each.

    Those that are not seen stand where the key does: what is read there is not masked, which would
    be an instruction for each register, but gets no weight.
    """
    heads, (first, b, g), (members, parts) = sizes.heads, place, split
    distance = _distance(n, parts, sizes)
    seen = position >= distance
    own = jnp.minimum(first + jnp.arange(sizes.tokens, dtype=jnp.int32), heads.length - 1)
    token = jnp.where(seen, own + distance, own)
    row = ((b * heads.length + token) * heads.kv_heads + g) * heads.group
    row += jax.lax.rem(n, parts) * members
    found = []
    for member in range(members):
        at = row + member
        log_total, mean = (read(ref, at, None) for ref in x.totals["short"])
        totals = PathTotals(jnp.where(seen, log_total, NOTHING), mean.astype(jnp.float32))
        q, d_out = (read(ref, at, None, columns=x.q.shape[1]) for ref in (x.q, x.d_out))
        found.append(Queries(q, d_out, {"short": totals}))
    return found


def _columns(x):
    """Splits a tile [rows, D] into eight, [rows, D / 8] each: every eighth column, from each on."""
    pieces = [x]
    for _ in range(SPLITS):
        pieces = [
            half
            for piece in pieces
            for half in jnp.unstack(piece.reshape(piece.shape[0], -1, 2), axis=-1)
        ]
    return pieces


def _joined(pieces):
    """Puts together what `_columns` splits."""
    while len(pieces) > 1:
        pairs = zip(pieces[::2], pieces[1::2], strict=True)
        pieces = [jnp.stack(pair, -1).reshape(pair[0].shape[0], -1) for pair in pairs]
    return pieces[0]


def _meet_ahead(totals: PathTotals, q, d_out, key, value, sizes: NearSizes, interpret: bool):
    """Weight and gradient of the logit of one key for each query, [rows, 1] each."""

    def product(a, b):
        total = a[0] * b[0]
        for some, more in zip(a[1:], b[1:], strict=True):
            total = fma(some, more, total, interpret)
        return total.sum(1)

    logit = fms(product(q, key), jnp.float32(sizes.log2_scale), totals.log_total, interpret)
    weight = exp2(logit, interpret)
    d_logit = weight * (product(d_out, value) - totals.mean)
    return weight[:, None], d_logit[:, None]
