"""Kernel of the gradients of attention to the selected blocks, walking the blocks.

A block's keys and values get their gradient from the block's own list of queries, in the list's
order: nothing is added to memory twice, and repeats are equal to the bit. The queries' gradients
are left as parts, one for each pair, which the kernel of near keys adds up.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.power_attention.triton_backward import PathTotals, read_mean
from pallas_kernels.selected_attention.blocks import BlockSizes, block_rows, pair_rows, read_pairs
from pallas_kernels.selected_attention.inverted_lists import InvertedLists
from pallas_kernels.triton_tools import (
    NOTHING,
    dot,
    exp2,
    fma,
    launch,
    pack,
    read,
    unpack,
    write,
)


class Inputs(NamedTuple):
    """Arrays of the kernel: matrices as in the forward kernel, d_out like q."""

    q: Any
    k: Any
    v: Any
    d_out: Any
    totals: PathTotals
    lists: InvertedLists


class Gradients(NamedTuple):
    """What the kernel writes.

    Attributes:
      q: [pairs * R, D], unwritten for pairs without a block.
      k: [B * G * slots * S, D] by slot.
      v: likewise.
      factor: f32[pairs * R], sum of d_logit * logit over the block's keys; None if not asked for.
    """

    q: Any
    k: Any
    v: Any
    factor: Any


def blocks_backward_kernel(x: Inputs, out: Gradients, *, sizes: BlockSizes, interpret: bool):
    """Finds the gradients that one block, and every query that selected it, give each other."""
    columns, scale = x.q.shape[1], jnp.float32(sizes.log2_scale)
    block = pl.program_id(0)
    key_row, key_real, begin, end = block_rows(x.lists, block, sizes)
    keys, values = (read(ref, key_row, key_real, columns=columns) for ref in (x.k, x.v))

    def find(n):
        return read_pairs(x.lists, begin + n * sizes.pairs, end, sizes)

    def rows_of(pair, n):
        return pair_rows(pair, begin + n * sizes.pairs, end, sizes)

    def read_queries(rows):
        _, query_row, real = rows
        log_total = jnp.where(real, read(x.totals.log_total, query_row, None), NOTHING)
        mean = read_mean(x.totals, query_row, None)
        q, d_out = (read(ref, query_row, None, columns=columns) for ref in (x.q, x.d_out))
        return pack(q, interpret), pack(d_out, interpret), log_total, mean

    ahead = sizes.reads_ahead(x.q)

    def tile(n, carry):
        pair, queries, following, d_k, d_v = carry
        rows = part_row, _, real = rows_of(pair, n)
        following_queries = read_queries(rows_of(following, n + 1)) if ahead else None
        after = find(n + 2)
        q, d_out, log_total, mean = queries if ahead else read_queries(rows)
        q, d_out = (unpack(each, x.q.dtype, interpret) for each in (q, d_out))
        scores = dot(keys, q, interpret, transpose_b=True)
        weights = exp2(fma(scores, scale, -log_total[None, :], interpret), interpret)
        if sizes.keys > sizes.block_size:
            weights = jnp.where(key_real[:, None], weights, 0.0)
        d_weights, mean = dot(values, d_out, interpret, transpose_b=True), -sizes.scale * mean
        d_logits = weights * fma(d_weights, jnp.float32(sizes.scale), mean[None, :], interpret)
        if out.factor is not None:
            write(out.factor, part_row, real, (d_logits * scores).sum(0))
        d_logits = d_logits.astype(q.dtype)
        # With keys as rows and this product transposed, one tile changes its layout, not two.
        write(out.q, part_row, real, dot(keys, d_logits, interpret, transpose_a=True).T)
        d_k += dot(d_logits, q, interpret)
        d_v += dot(weights.astype(q.dtype), d_out, interpret)
        return following, following_queries, after, d_k, d_v

    d_k = d_v = jnp.zeros((sizes.keys, columns), jnp.float32)
    tiles = pl.cdiv(end - begin, sizes.pairs)
    first = find(0)
    carry = first, read_queries(rows_of(first, 0)) if ahead else None, find(1), d_k, d_v
    *_, d_k, d_v = jax.lax.fori_loop(0, tiles, tile, carry)
    n = jnp.arange(sizes.keys, dtype=jnp.int32)
    row, real = block * sizes.block_size + n, n < sizes.block_size
    write(out.k, row, real, d_k)
    write(out.v, row, real, d_v)


def blocks_backward(
    x: Inputs, sizes: BlockSizes, batch: int, *, with_factor: bool, interpret: bool
) -> Gradients:
    """Launches `blocks_backward_kernel`."""
    rows, columns = x.lists.pairs.size * sizes.heads.group, x.q.shape[1]
    by_slot = sizes.programs(batch) * sizes.block_size, columns
    return launch(
        blocks_backward_kernel,
        x,
        Gradients(
            q=jax.ShapeDtypeStruct((rows, columns), x.q.dtype),
            k=jax.ShapeDtypeStruct(by_slot, x.k.dtype),
            v=jax.ShapeDtypeStruct(by_slot, x.v.dtype),
            factor=jax.ShapeDtypeStruct((rows,), jnp.float32) if with_factor else None,
        ),
        name="blocks_backward",
        programs=sizes.programs(batch),
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
