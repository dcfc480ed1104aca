"""Kernel of the gradients of keys and values, from queries near them: see triton_backward.py.

A tile of 16 keys are the rows of each product and some query heads its columns: what comes out of
the first products goes into the second ones as it stands in registers. Small heads take one warp,
which waits for no other. Keys a power of two behind the queries are in triton_backward_shifts.py.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.path_totals import PathTotals
from pallas_kernels.power_attention.attended import attending
from pallas_kernels.power_attention.backward_inputs import BackwardInputs, read_queries
from pallas_kernels.power_attention.near import NearSizes
from pallas_kernels.power_attention.triton_backward_shifts import shifted_keys
from pallas_kernels.triton_tools import (
    Tile,
    block_row,
    dot,
    exp2,
    fma,
    hold,
    launch,
    read,
    read_tile,
    write,
)


def _meet_band(queries, words, tile, sizes: NearSizes, interpret: bool):
    """Weights and gradients of the logits, summed over the paths.

    Args:
      queries: a tile of the band; their totals with the opposite sign, as additions want them.
      words: int32[rows], from `attending`.
      tile: keys and values [keys, D].
      sizes: static sizes.
      interpret: see `launch`.

    Returns:
      f32[keys, rows] each.
    """
    keys, values = tile
    scores = dot(keys, queries.q, interpret, transpose_b=True)
    d_weights = dot(values, queries.d_out, interpret, transpose_b=True)
    weights = d_logits = jnp.float32(0)
    scale, index = jnp.float32(sizes.log2_scale), jnp.arange(sizes.tokens, dtype=jnp.int32)
    for n, (log_total, delta) in enumerate(queries.totals.values()):
        bit = jax.lax.shift_left(jnp.int32(1), index + n * sizes.tokens)
        logits = fma(scores, scale, log_total[None, :], interpret)
        allowed = (words[None, :] & bit[:, None]) != 0
        weight = exp2(jnp.where(allowed, logits, MASKED), interpret)
        d_logits = (
            fma(weight, delta[None, :], d_logits, interpret) if n else weight * delta[None, :]
        )
        weights = weights + weight if n else weight
    return weights, fma(weights, d_weights, d_logits, interpret)


def near_keys_kernel(x: BackwardInputs, out, *, sizes: NearSizes, interpret: bool):
    """Finds the gradients of `sizes.tokens` tokens' key and value of one key/value head."""
    columns = x.q.shape[1]
    program = pl.program_id(0)
    place = first, b, g = sizes.place(program)
    tile = read_tile(x.positions, first, sizes.tokens, b, g, sizes.heads.single)
    steps = (1 + sizes.behind // sizes.tokens) * sizes.head_slices
    position = _band_tile(x, jnp.int32(0), place, sizes)[0].position
    kv = [read(ref, tile.row, tile.position >= 0, columns=columns) for ref in (x.k, x.v)]
    sums = [jnp.zeros((sizes.tokens, columns), jnp.float32)] * 2
    if "short" in sizes.paths and sizes.shifts:
        sums = shifted_keys(x, place, sizes, interpret)

    def add(n, carry):
        position, (d_k, d_v) = carry
        band, step = _band_tile(x, n, place, sizes)
        found = _read_band(x, band._replace(position=position), step, first, sizes)
        position = _band_tile(x, n + 1, place, sizes)[0].position  # waited for in the next step
        if sizes.holds_reads(x.k):
            found = jax.tree.map(lambda y: hold(y, program), found)
        words, queries = found
        weights, d_logits = _meet_band(queries, words, kv, sizes, interpret)
        dtype = queries.q.dtype
        d_k += dot(d_logits.astype(dtype), queries.q, interpret)
        d_v += dot(weights.astype(dtype), queries.d_out, interpret)
        return position, [d_k, d_v]

    _, (d_k, d_v) = jax.lax.fori_loop(0, steps, add, (position, sums))
    blocks = [] if x.parts is None else _block_parts(x, tile, b, g, sizes)
    real = (tile.position >= 0)[:, None]
    totals = [jnp.where(real, total, 0.0) for total in (d_k * sizes.scale, d_v)]
    for n, part in enumerate(blocks):
        totals[n] += part.astype(jnp.float32)
    for ref, total in zip(out, totals, strict=True):
        write(ref, tile.row, tile.inside, total)


def _band_tile(x: BackwardInputs, n, place, sizes: NearSizes):
    """Finds the n-th tile of queries in the band, and how many tiles it is ahead of the keys'."""
    first, b, g = place
    step, part = jax.lax.div(n, sizes.head_slices), jax.lax.rem(n, sizes.head_slices)
    begin = first + step * sizes.tokens
    tile = read_tile(x.positions, begin, sizes.tokens, b, g, sizes.heads, sizes.members, part)
    return tile, step


def _read_band(x: BackwardInputs, tile: Tile, step, first, sizes: NearSizes):
    """Finds which keys a tile of queries attends, and reads it, its totals with opposite signs."""
    queries = read_queries(x, tile.row, tile.position >= 0, sizes.paths)
    negative = {name: PathTotals(-y.log_total, -y.delta) for name, y in queries.totals.items()}
    index = tile.token - first - step * sizes.tokens
    return attending(tile.position, index, step, sizes), queries._replace(totals=negative)


def _block_parts(x: BackwardInputs, tile: Tile, b, g, sizes: NearSizes):
    """Reads what the queries that selected a token's block give to its key and value.

    They are one array by slot, [B * G * slots * 2 * S, D]: of a block's keys, then of its values;
    there are none for blocks that are not complete.
    """
    length, size = sizes.heads.length, sizes.block_size
    offset = jax.lax.rem(jnp.maximum(tile.position, 0), size)
    to_last = size - 1 - offset
    last = tile.token + to_last
    at_last = read(x.positions, b * length + last, last < length, other=-1)
    whole = (tile.position >= 0) & (at_last == tile.position + to_last)
    slots = pl.cdiv(length, size)
    slot = (b * sizes.heads.kv_heads + g) * slots + (tile.token - offset) // size
    rows = [block_row(slot, which, offset, size) for which in range(2)]
    return [read(x.parts, row, whole, columns=x.q.shape[1]) for row in rows]


def near_keys(x: BackwardInputs, sizes: NearSizes, batch: int, interpret: bool):
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
