"""Kernel that adds up the gradients of blocks whose list was cut: see triton_backward.py.

One program adds all shares of some keys, in the list's order: repeats are equal to the bit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.selected_attention.blocks import BlockSizes
from pallas_kernels.selected_attention.inverted_lists import InvertedLists
from pallas_kernels.triton_tools import LEAST_TILE, launch, read, warps_for, write

_TOGETHER = 4  # shares that are read before the first is waited for


class Inputs(NamedTuple):
    """Gradients of k and v as `blocks_backward` leaves them, two each, and the lists."""

    gradients: Any
    shares: Any
    lists: InvertedLists


def add_runs_kernel(x: Inputs, out, *, sizes: BlockSizes, interpret: bool):
    """Adds the runs of a list from its first cut on to the gradient of `LEAST_TILE` keys."""
    del interpret
    columns, size = x.gradients[0].shape[1], sizes.block_size
    tiles = pl.cdiv(size, LEAST_TILE)
    program = pl.program_id(0)
    extra = program // tiles
    n = (program % tiles) * LEAST_TILE + jnp.arange(LEAST_TILE, dtype=jnp.int32)
    block, count = _runs_after(x.lists, extra, sizes.longest_run(x.lists))

    def read_both(refs, which, there):
        found = (read(ref, which * size + n, (n < size) & there, columns=columns) for ref in refs)
        return [x.astype(jnp.float32) for x in found]

    def add(m, totals):
        runs = [m * _TOGETHER + each for each in range(_TOGETHER)]
        for share in [read_both(x.shares, extra + run, run < count) for run in runs]:
            totals = [total + more for total, more in zip(totals, share, strict=True)]
        return totals

    totals = read_both(x.gradients, block, count > 0)
    totals = jax.lax.fori_loop(0, pl.cdiv(count, _TOGETHER), add, totals)
    for ref, total in zip(out, totals, strict=True):
        write(ref, block * size + n, (n < size) & (count > 0), total)


def _runs_after(lists: InvertedLists, extra, longest: int):
    """Returns the block of a cut, and how many runs its list has after its first one.

    That is 0 unless the cut is the list's first.
    """
    assert lists.run_blocks is not None
    block, cut = lists.run_blocks[extra], (extra + 1) * longest
    begin, end = lists.begins[block], lists.begins[block + 1]
    is_first = (begin < cut) & (cut <= begin + longest) & (begin + longest < end)
    return block, jnp.where(is_first, pl.cdiv(end - cut, longest), 0)


def add_runs(gradients, shares, lists: InvertedLists, sizes: BlockSizes, interpret: bool):
    """Launches `add_runs_kernel`, in place.

    Args:
      gradients: of k and v by slot, as in `Gradients`.
      shares: of the runs that begin at a cut, likewise.
      lists: from `invert`; some may be cut.
      sizes: of the kernel that left them.
      interpret: see `launch`.

    Returns:
      Gradients of k and v by slot, from all runs.
    """
    return launch(
        add_runs_kernel,
        Inputs(gradients, shares, lists),
        tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in gradients),
        name="add_runs",
        programs=lists.extras * pl.cdiv(sizes.block_size, LEAST_TILE),
        num_warps=warps_for(LEAST_TILE * gradients[0].shape[1], 8, least=1),
        num_stages=1,
        in_place=2,
        interpret=interpret,
        sizes=sizes,
    )
