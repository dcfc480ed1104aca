"""Gradients of keys and values from queries a power of two ahead, beyond the band: `near_keys`.

Each key meets one query of a distance, so nothing is multiplied as a matrix. The heads of a query
stand side by side in memory, and narrow ones are read so: a tile has a row for each of `together`
heads of some tokens, and as many such tiles cover the program's tokens. So what the heads give to a
key is added up over all distances first, and over the heads last.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.path_totals import PathTotals
from pallas_kernels.power_attention.backward_inputs import BackwardInputs, Queries
from pallas_kernels.power_attention.head_reads import HeadReads
from pallas_kernels.power_attention.near import NearSizes, shift
from pallas_kernels.triton_tools import NOTHING, exp2, fma, fms, read, widen

READ_BYTES = 16  # of a row, by one thread


class Rows(NamedTuple):
    """Some tokens' keys, a row for each of the query heads that are read together.

    Attributes:
      token: int32[rows], index in the row of the batch.
      at: int32[rows], the same in the whole batch, of a token that exists.
      member: int32[rows], which of those heads.
      distances: int32[], how many are looked at.
      key: columns of the keys, see `_columns`.
      value: of the values.
    """

    token: Any
    at: Any
    member: Any
    distances: Any
    key: list
    value: list


def shifted_keys(x: BackwardInputs, place, sizes: NearSizes, interpret: bool):
    """Adds up what the queries a power of two ahead give to a tile of keys and values.

    Args:
      x: what is read.
      place: first token, batch row and key/value head of the tile.
      sizes: static sizes.
      interpret: see `launch`.

    Returns:
      Gradients of the keys, to be scaled, and of the values: f32[tokens, D] each.
    """
    columns, itemsize = x.q.shape[1], x.q.dtype.itemsize
    reads = HeadReads(sizes.heads.group, columns * itemsize)

    def add(n, sums):
        rows = _rows(x, n, reads, place, sizes, interpret)
        found = _from_ahead(x, rows, reads, place, sizes, interpret)
        own = (rows.member == n)[:, None]  # the row that stands for this tile's token

        def put(new, old):
            return jnp.where(own, _over_heads(new, reads.together), old)

        return jax.tree.map(put, found, sums)

    count = READ_BYTES // itemsize
    zero = [jnp.zeros((sizes.tokens, columns // count), jnp.float32)] * count
    sums = jax.lax.fori_loop(jnp.int32(0), jnp.int32(reads.together), add, (zero, zero))
    return [_joined(pieces) for pieces in sums]


def _rows(x: BackwardInputs, n, reads: HeadReads, place, sizes: NearSizes, interpret: bool) -> Rows:
    """Takes the n-th of every `reads.together` tokens of a tile.

    Keys are read again, from the first-level cache: the band has them as operands of products.
    Distances at which the whole tile would look past the end of the row are left out.
    """
    heads, (first, b, g) = sizes.heads, place
    row = jnp.arange(sizes.tokens, dtype=jnp.int32)
    member = jax.lax.rem(row, reads.together)
    token = first + row - member + n
    at = b * heads.length + jnp.minimum(token, heads.length - 1)
    key_row, columns = at * heads.kv_heads + g, x.q.shape[1]
    kv = [_columns(read(ref, key_row, None, columns=columns), interpret) for ref in (x.k, x.v)]
    fitting = jnp.maximum(heads.length - 1 - first, 0) // sizes.first_shift
    distances = jnp.minimum(32 - jax.lax.clz(fitting), sizes.shifts)
    return Rows(token, at, member, distances, *kv)


def _from_ahead(
    x: BackwardInputs, rows: Rows, reads: HeadReads, place, sizes: NearSizes, interpret: bool
):
    """Adds up gradients of the keys and values, by columns, for each head of a read apart."""

    def find_ahead(step):
        first, _ = reads.place(step)
        return [_find_ahead(x, first + n, rows, place, sizes) for n in range(reads.distances)]

    def add(step, carry):
        ahead, sums = carry
        _, first = reads.place(step)
        found = [
            _read_ahead(x, one, (first + n) * reads.together, rows, place, sizes)
            for one in ahead
            for n in range(reads.of_step)
        ]
        ahead = find_ahead(step + 1)
        for queries in found:
            sums = _add_query(queries, rows, sums, sizes, interpret)
        return ahead, sums

    zero = [jnp.zeros(piece.shape, jnp.float32) for piece in rows.key]
    start = find_ahead(jnp.int32(0)), (zero, zero)
    return jax.lax.fori_loop(jnp.int32(0), reads.steps(rows.distances), add, start)[1]


def _find_ahead(x: BackwardInputs, number, rows: Rows, place, sizes: NearSizes):
    """Returns a distance by its number, and the positions of the queries there, -1 for none."""
    distance = shift(number, sizes)
    token = rows.token + distance
    inside = (token < sizes.heads.length) & (number < rows.distances)
    return distance, read(x.positions, place[1] * sizes.heads.length + token, inside, other=-1)


def _read_ahead(
    x: BackwardInputs, ahead, first_head, rows: Rows, place, sizes: NearSizes
) -> Queries:
    """Reads some heads of the queries that were found; totals as wide as a piece of `_columns`.

    Those that are not seen stand where the key does: what is read there is not masked, which would
    be an instruction for each register, but gets no weight.
    """
    heads, columns, (distance, position) = sizes.heads, x.q.shape[1], ahead
    seen = position >= distance
    at = (jnp.where(seen, rows.at + distance, rows.at) * heads.kv_heads + place[2]) * heads.group
    at += first_head + rows.member
    wide = jnp.broadcast_to(at[:, None], rows.key[0].shape)
    log_total, delta = (plgpu.load(ref.at[wide]) for ref in x.totals["short"])
    totals = PathTotals(jnp.where(seen[:, None], log_total, NOTHING), delta.astype(jnp.float32))
    q, d_out = (read(ref, at, None, columns=columns) for ref in (x.q, x.d_out))
    return Queries(q, d_out, {"short": totals})


def _add_query(queries: Queries, rows: Rows, sums, sizes: NearSizes, interpret: bool):
    """Adds what one query head gives to each key and value."""
    d_k, d_v = sums
    q, d_out = (_columns(tile, interpret) for tile in (queries.q, queries.d_out))
    log_total, delta = queries.totals["short"]
    product = _product(q, rows.key, interpret)
    weight = exp2(fms(product, jnp.float32(sizes.log2_scale), log_total, interpret), interpret)
    d_logit = weight * (_product(d_out, rows.value, interpret) - delta)
    d_k = [fma(d_logit, y, total, interpret) for y, total in zip(q, d_k, strict=True)]
    d_v = [fma(weight, y, total, interpret) for y, total in zip(d_out, d_v, strict=True)]
    return d_k, d_v


def _product(a, b, interpret: bool):
    """Multiplies rows with rows: [rows, D / count], the same in all columns."""
    total = a[0] * b[0]
    for some, more in zip(a[1:], b[1:], strict=True):
        total = fma(some, more, total, interpret)
    return jnp.broadcast_to(total.sum(1)[:, None], total.shape)


def _over_heads(x, members: int):
    """Adds up every `members` rows; each of them gets the sum."""
    apart = x.reshape(-1, members, x.shape[1])
    return jnp.broadcast_to(apart.sum(1)[:, None], apart.shape).reshape(x.shape)


def _columns(x, interpret: bool):
    """Widens a tile [rows, D] and splits it into as many pieces as a thread reads columns.

    Returns:
      [rows, D / count] each: every count-th column, from each on.
    """
    count, pieces = READ_BYTES // x.dtype.itemsize, [widen(x, interpret)]
    while len(pieces) < count:
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
