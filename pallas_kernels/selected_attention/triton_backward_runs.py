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
    """Gradients of k and v by run, as `blocks_backward_kernel` leaves them, and the lists."""

    gradients: Any
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

    def read_both(number, there):
        at, inside = number * size + n, (n < size) & there
        found = (read(ref, at, inside, columns=columns) for ref in x.gradients)
        return [each.astype(jnp.float32) for each in found]

    def add(m, totals):
        runs = [m * _TOGETHER + each for each in range(_TOGETHER)]
        for share in [read_both(extra + run, run < count) for run in runs]:
            totals = [total + more for total, more in zip(totals, share, strict=True)]
        return totals

    first = x.lists.extras + block
    totals = read_both(first, count > 0)
    totals = jax.lax.fori_loop(0, pl.cdiv(count, _TOGETHER), add, totals)
    for ref, total in zip(out, totals, strict=True):
        write(ref, first * size + n, (n < size) & (count > 0), total)


def _runs_after(lists: InvertedLists, extra, longest: int):
    """Returns the block of a cut, and how many runs its list has after its first one.

    That is 0 unless the cut is the list's first.
    """
    assert lists.run_blocks is not None
    block, cut = lists.run_blocks[extra], (extra + 1) * longest
    begin, end = lists.begins[block], lists.begins[block + 1]
    is_first = (begin < cut) & (cut <= begin + longest) & (begin + longest < end)
    return block, jnp.where(is_first, pl.cdiv(end - cut, longest), 0)


def add_runs(gradients, lists: InvertedLists, sizes: BlockSizes, interpret: bool):
    """Launches `add_runs_kernel`, in place.

    Args:
      gradients: of k and v by run, [runs * S, D] each.
      lists: from `invert`; some may be cut.
      sizes: of the kernel that left them.
      interpret: see `launch`.

    Returns:
      The same, where those of a list's first run hold those of all its runs.
    """
    return launch(
        add_runs_kernel,
        Inputs(gradients, lists),
        tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in gradients),
        name="add_runs",
        programs=lists.extras * pl.cdiv(sizes.block_size, LEAST_TILE),
        num_warps=warps_for(LEAST_TILE * gradients[0].shape[1], 8, least=1),
        num_stages=1,
        in_place=2,
        interpret=interpret,
        sizes=sizes,
    )
