"""Kernel of attention to the selected blocks, walking the blocks and not the queries.

A query's group has few heads, a block's list has many queries: so a block is read once, and the
products are tall. Each block's softmax is left unmerged, as a part with its log-sum-exp; the kernel
of near keys merges a query's parts with its own block.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.selected_attention.blocks import BlockSizes, block_rows, pair_rows
from pallas_kernels.selected_attention.inverted_lists import InvertedLists, find_run
from pallas_kernels.triton_tools import dot, exp2, fma, launch, log2, read, reciprocal, write


class BlockInputs(NamedTuple):
    """Arrays of the kernel: q [B * L * H, D], k and v [B * L * G, D], and the lists."""

    q: Any
    k: Any
    v: Any
    lists: InvertedLists


def blocks_forward_kernel(x: BlockInputs, out, *, sizes: BlockSizes, interpret: bool):
    """Attends one block from the queries of a run, of those that selected it."""
    columns, scale = x.q.shape[1], jnp.float32(sizes.log2_scale)
    run = find_run(x.lists, pl.program_id(0), sizes.longest_run(x.lists))
    key_row, key_real = block_rows(x.lists, run, sizes)
    keys, values = (read(ref, key_row, key_real, columns=columns) for ref in (x.k, x.v))

    def tile(n, rows):
        part_row, query_row, real = rows
        following = pair_rows(x.lists, run.begin + (n + 1) * sizes.pairs, run.end, sizes)
        q = read(x.q, query_row, real, columns=columns)
        scores = dot(q, keys, interpret, transpose_b=True)
        if sizes.keys > sizes.block_size:
            scores = jnp.where(key_real[None, :], scores, MASKED)
        highest = scores.max(1) * scale
        weight = exp2(fma(scores, scale, -highest[:, None], interpret), interpret)
        total = weight.sum(1)
        part = (
            dot(weight.astype(values.dtype), values, interpret)
            * reciprocal(total, interpret)[:, None]
        )
        write(out[0], part_row, real, part)
        write(out[1], part_row, real, highest + log2(total, interpret))
        return following

    rows = pair_rows(x.lists, run.begin, run.end, sizes)
    jax.lax.fori_loop(0, pl.cdiv(run.end - run.begin, sizes.pairs), tile, rows)


def blocks_forward(q, k, v, lists: InvertedLists, sizes: BlockSizes, interpret: bool):
    """Launches `blocks_forward_kernel`.

    Args:
      q: [B * L * H, D].
      k: [B * L * G, D].
      v: [B * L * G, D].
      lists: from `invert`.
      sizes: sizes and tiles.
      interpret: see `launch`.

    Returns:
      Outputs [pairs * R, D] and log-sum-exps f32[pairs * R]; unwritten for pairs without a block.
    """
    rows = lists.pairs.size * sizes.heads.group
    return launch(
        blocks_forward_kernel,
        BlockInputs(q, k, v, lists),
        (
            jax.ShapeDtypeStruct((rows, q.shape[1]), q.dtype),
            jax.ShapeDtypeStruct((rows,), jnp.float32),
        ),
        name="blocks_forward",
        programs=lists.runs,
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
