"""Kernel of the gradients of attention to the selected blocks, walking the blocks.

A block's keys and values get their gradient from the block's own list of queries, in the list's
order, and repeats are equal to the bit. Of a list that is cut each run leaves its share, which
triton_backward_runs.py adds up. The queries' gradients are left as parts, one for each pair:
`near_queries` adds them up, and `near_keys` adds those of keys and values to its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.path_totals import PathTotals, read_delta
from pallas_kernels.selected_attention.blocks import BlockSizes, block_rows, pair_rows
from pallas_kernels.selected_attention.inverted_lists import InvertedLists, find_run
from pallas_kernels.selected_attention.triton_backward_runs import add_runs
from pallas_kernels.triton_tools import (
    NOTHING,
    block_row,
    dot,
    exp2,
    fma,
    hold,
    launch,
    read,
    write,
)


class BlockBackwardInputs(NamedTuple):
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
      kv: [B * G * slots * 2 * S, D] by slot: of its keys, then of its values. Until `add_runs` they
        are of the first run of a list alone, rounded to the dtype.
      factor: f32[pairs * R], sum of d_logit * logit over the block's keys; None if not asked for.
      shares: of the runs that begin at a cut, f32[extras * 2 * S, D] likewise; None without cuts.
    """

    q: Any
    kv: Any
    factor: Any
    shares: Any


def blocks_backward_kernel(
    x: BlockBackwardInputs, out: Gradients, *, sizes: BlockSizes, interpret: bool
):
    """Finds the gradients that a block, and the queries of a run that selected it, exchange."""
    columns, scale = x.q.shape[1], jnp.float32(sizes.log2_scale)
    program = pl.program_id(0)
    run = find_run(x.lists, program, sizes.longest_run(x.lists))
    key_row, key_real = block_rows(x.lists, run, sizes)
    keys, values = (read(ref, key_row, key_real, columns=columns) for ref in (x.k, x.v))

    def find(n):
        return pair_rows(x.lists, run.begin + n * sizes.pairs, run.end, sizes)

    def read_queries(rows):
        _, query_row, real = rows
        log_total = read(x.totals.log_total, query_row, real, other=NOTHING)
        delta = read_delta(x.totals, query_row, real)
        q, d_out = (read(ref, query_row, real, columns=columns) for ref in (x.q, x.d_out))
        return q, d_out, log_total, delta

    ahead = sizes.reads_ahead(x.q)

    def tile(n, carry):
        rows, queries, following, d_k, d_v = carry
        part_row, _, real = rows
        following_queries = read_queries(following) if ahead else None
        after = find(n + 2)
        found = queries if ahead else read_queries(rows)
        if x.q.dtype == jnp.bfloat16:  # f32 has no registers to hold them in
            found = tuple(hold(each, program) for each in found)
        q, d_out, log_total, delta = found
        scores = dot(q, keys, interpret, transpose_b=True)
        weights = exp2(fma(scores, scale, -log_total[:, None], interpret), interpret)
        if sizes.keys > sizes.block_size:
            weights = jnp.where(key_real[None, :], weights, 0.0)
        d_logits = weights * (dot(d_out, values, interpret, transpose_b=True) - delta[:, None])
        if out.factor is not None:
            write(out.factor, part_row, real, (d_logits * scores).sum(1) * sizes.scale)
        d_logits = d_logits.astype(q.dtype)
        write(out.q, part_row, real, dot(d_logits, keys, interpret) * sizes.scale)
        d_k += dot(d_logits, q, interpret, transpose_a=True)
        d_v += dot(weights.astype(q.dtype), d_out, interpret, transpose_a=True)
        return following, following_queries, after, d_k, d_v

    d_k = d_v = jnp.zeros((sizes.keys, columns), jnp.float32)
    tiles = pl.cdiv(run.end - run.begin, sizes.pairs)
    first = find(0)
    carry = first, read_queries(first) if ahead else None, find(1), d_k, d_v
    *_, d_k, d_v = jax.lax.fori_loop(0, tiles, tile, carry)
    _write_gradients(out, x.lists, program, (d_k * sizes.scale, d_v), sizes)


def _write_gradients(out: Gradients, lists: InvertedLists, program, gradients, sizes: BlockSizes):
    """Writes a run's gradients of the keys and values, [keys, D] each.

    Where to is told by the program's number alone, and chosen by a branch: whose they are, and the
    masks of two places, would take registers during the loop.
    """
    n = jnp.arange(sizes.keys, dtype=jnp.int32)

    def write_to(ref, number):
        for which, gradient in enumerate(gradients):
            row = block_row(number, which, n, sizes.block_size)
            write(ref, row, n < sizes.block_size, gradient)

    block = program - lists.extras
    if out.shares is None:
        write_to(out.kv, block)
        return
    jax.lax.cond(block >= 0, lambda: write_to(out.kv, block), lambda: write_to(out.shares, program))


def blocks_backward(
    x: BlockBackwardInputs, sizes: BlockSizes, *, with_factor: bool, interpret: bool
) -> Gradients:
    """Launches `blocks_backward_kernel`, and adds up what the runs of a list leave."""
    rows, columns = x.lists.pairs.size * sizes.heads.group, x.q.shape[1]
    by_slot, by_cut = (n * 2 * sizes.block_size for n in (x.lists.blocks, x.lists.extras))
    found = launch(
        blocks_backward_kernel,
        x,
        Gradients(
            q=jax.ShapeDtypeStruct((rows, columns), x.q.dtype),
            kv=jax.ShapeDtypeStruct((by_slot, columns), x.k.dtype),
            factor=jax.ShapeDtypeStruct((rows,), jnp.float32) if with_factor else None,
            shares=jax.ShapeDtypeStruct((by_cut, columns), jnp.float32) if by_cut else None,
        ),
        name="blocks_backward",
        programs=x.lists.runs,
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
    if not by_cut:
        return found
    kv = add_runs(found.kv, found.shares, x.lists, sizes, interpret)
    # The shares' memory is free again before anything else takes some.
    return jax.lax.optimization_barrier(found._replace(kv=kv, shares=None))
