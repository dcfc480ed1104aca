"""Kernel that adds up the gradients of blocks whose list was cut: see triton_backward.py.

One program adds all shares of `LEAST_TILE` rows of a block, which has as many as keys and values,
in the list's order: repeats are equal to the bit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.selected_attention.blocks import BlockSizes
from pallas_kernels.selected_attention.inverted_lists import InvertedLists
from pallas_kernels.triton_tools import LEAST_TILE, launch, read, warps_for, write

_TOGETHER = 4  # shares that are read before the first is waited for


class RunInputs(NamedTuple):
    """Gradients and shares as `blocks_backward_kernel` leaves them, and the lists."""

    gradients: Any
    shares: Any
    lists: InvertedLists


def add_runs_kernel(x: RunInputs, out, *, sizes: BlockSizes, interpret: bool):
    """Adds what a list's runs from its first cut on give to some rows of its keys and values."""
    del interpret
    columns, size = x.gradients.shape[1], 2 * sizes.block_size
    tiles = pl.cdiv(size, LEAST_TILE)
    program = pl.program_id(0)
    extra = program // tiles
    n = (program % tiles) * LEAST_TILE + jnp.arange(LEAST_TILE, dtype=jnp.int32)
    block, count = _runs_after(x.lists, extra, sizes.longest_run(x.lists))

    def read_share(run):
        return read(x.shares, (extra + run) * size + n, (n < size) & (run < count), columns=columns)

    def add(m, total):
        for share in [read_share(m * _TOGETHER + each) for each in range(_TOGETHER)]:
            total += share
        return total

    at, real = block * size + n, (n < size) & (count > 0)
    total = read(x.gradients, at, real, columns=columns).astype(jnp.float32)
    total = jax.lax.fori_loop(0, pl.cdiv(count, _TOGETHER), add, total)
    write(out, at, real, total)


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
      gradients: of keys and values by slot, as in `Gradients`.
      shares: of the runs that begin at a cut, likewise.
      lists: from `invert`; some may be cut.
      sizes: of the kernel that left them.
      interpret: see `launch`.

    Returns:
      Gradients by slot, from all runs.
    """
    return launch(
        add_runs_kernel,
        RunInputs(gradients, shares, lists),
        jax.ShapeDtypeStruct(gradients.shape, gradients.dtype),
        name="add_runs",
        programs=lists.extras * pl.cdiv(2 * sizes.block_size, LEAST_TILE),
        num_warps=warps_for(LEAST_TILE * gradients.shape[1], 8, least=1),
        num_stages=1,
        in_place=1,
        interpret=interpret,
        sizes=sizes,
    )
