"""Who selected a block: the selection turned around, so that kernels can walk the blocks.

A pair is a query and one of its selected blocks, numbered ((b * L + token) * G + g) * N + n. Blocks
are numbered (b * G + g) * slots + slot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from pallas_kernels.positions import slot_offset
from pallas_kernels.triton_tools import launch, read, write

_SEARCHES = 128  # of one program
MEANS_IN_RUN = 2  # lists of the mean length in the longest run
LEAST_RUN = 128  # pairs in it
MOST_RUNS = 8192  # of that length, in all pairs
_SIGN_OF_16 = 2**15  # blocks that 16 bits hold with their highest bit 0


class InvertedLists(NamedTuple):
    """The pairs of each block.

    Attributes:
      pairs: pairs sorted by block, within a block by query; those without a block at the end.
      begins: the pairs of block n are pairs[begins[n] : begins[n + 1]].
      offset: the block in slot w begins at token w * S + offset; by slot, for all heads.
      run_blocks: whose pair stands at place (m + 1) * `longest_run`, where lists may be cut; the
        last block if that pair has none. None where no list can be longer than a run.
    """

    pairs: Int[Array, "pairs"]
    begins: Int[Array, "blocks+1"]
    offset: Int[Array, "B*slots"]
    run_blocks: Int[Array, "extras"] | None

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self.begins.shape[0] - 1

    @property
    def extras(self) -> int:
        """How many places there are where a list may be cut."""
        return 0 if self.run_blocks is None else self.run_blocks.shape[0]

    @property
    def runs(self) -> int:
        """How many programs walk them."""
        return self.blocks + self.extras


class Run(NamedTuple):
    """What one program walks: a list, or what of it lies between two cuts.

    Attributes:
      block: int32, whose list it is.
      begin: int32, place of the first pair.
      end: int32, place behind the last; not above `begin` if there is nothing to do.
    """

    block: Any
    begin: Any
    end: Any


def longest_run(pairs: int, block_size: int, num_selected: int) -> int:
    """Returns how many pairs one program takes at most.

    Twice as many as a block has on average, N * S; where there are so many pairs that no program
    can be the last for long, more of them, since runs cost time too.

    Args:
      pairs: of all blocks.
      block_size: S.
      num_selected: N.
    """
    return max(LEAST_RUN, MEANS_IN_RUN * block_size * num_selected, pairs // MOST_RUNS)


def find_run(lists: InvertedLists, program, longest: int) -> Run:
    """Finds the pairs of a program, so that all programs together take each pair once.

    Lists with more pairs than `longest` are cut, and only at multiples of it. The first programs
    take what begins at a cut, the others the first or only run of each block.

    Args:
      lists: `InvertedLists`, or refs of them.
      program: int32, below `lists.runs`.
      longest: from `longest_run`.
    """
    if lists.run_blocks is None:
        return Run(program, lists.begins[program], lists.begins[program + 1])
    block = program - lists.extras
    extra, cut = block < 0, (program + 1) * longest
    at_cut = lists.run_blocks[jnp.minimum(program, lists.extras - 1)]
    block = jnp.where(extra, at_cut, block)
    begin, end = lists.begins[block], lists.begins[block + 1]
    is_cut = end - begin > longest
    next_cut = begin + longest - jax.lax.rem(begin, jnp.int32(longest))
    first_end = jnp.where(is_cut, next_cut, end)
    extra_end = jnp.where(is_cut & (begin < cut), jnp.minimum(cut + longest, end), cut)
    end = jnp.where(extra, extra_end, first_end)
    return Run(block, jnp.where(extra, cut, begin), end)


def invert(
    slots: Int[Array, "B L G N"],
    positions: Int[Array, "B L"],
    block_size: int,
    max_history: int,
    interpret: bool,
) -> InvertedLists:
    """Lists, for each block, the pairs that selected it, by one stable sort.

    Args:
      slots: selected, -1 for none.
      positions: -1 for padding.
      block_size: S.
      max_history: bound on positions.
      interpret: see `launch`.
    """
    batch, length, kv_heads, num_selected = slots.shape
    num_slots = -(-length // block_size)
    head = jnp.arange(batch, dtype=jnp.int32)[:, None] * kv_heads + jnp.arange(kv_heads)
    blocks = batch * kv_heads * num_slots
    block = head.astype(jnp.int32)[:, None, :, None] * num_slots + slots
    block = jnp.where(slots >= 0, block, blocks).reshape(-1).astype(_key_type(blocks))
    pair = jnp.arange(block.size, dtype=jnp.int32)
    block, pair = jax.lax.sort((block, pair), num_keys=1, is_stable=True)
    begins = _list_begins(block, blocks, interpret)
    offset = slot_offset(positions, block_size=block_size)
    longest = longest_run(pair.size, block_size, num_selected)
    run_blocks = None
    if max_history > longest:  # only its own history selects a block, and each query once
        run_blocks = jnp.minimum(block[longest::longest].astype(jnp.int32), blocks - 1)
    return InvertedLists(pair, begins, offset.reshape(-1), run_blocks)


def _key_type(blocks: int):
    """Returns what the numbers of blocks, and `blocks` for none, are sorted as.

    Of 16 bits where they are below the sign, in half the passes of 32; unsigned, as such keys alone
    have a fast sort of pairs on GPUs.
    """
    return jnp.uint16 if blocks < _SIGN_OF_16 else jnp.int32


def _list_begins(block: Int[Array, "pairs"], blocks: int, interpret: bool):
    """Finds where the pairs of each block begin among those sorted by block; the end at last."""
    return launch(
        list_begins_kernel,
        block,
        jax.ShapeDtypeStruct((blocks + 1,), jnp.int32),
        name="list_begins",
        programs=pl.cdiv(blocks + 1, _SEARCHES),
        num_warps=4,
        num_stages=1,
        interpret=interpret,
        pairs=block.size,
        blocks=blocks,
    )


def list_begins_kernel(block, out, *, pairs: int, blocks: int, interpret: bool):
    """Searches `block` [pairs], which is sorted, for where `out` [blocks + 1] may be put in."""
    del interpret
    wanted = pl.program_id(0) * _SEARCHES + jnp.arange(_SEARCHES, dtype=jnp.int32)

    def halve(_, bounds):
        begin, end = bounds
        middle = begin + jax.lax.div(end - begin, 2)
        below = read(block, middle, begin < end, other=blocks).astype(jnp.int32) < wanted
        return jnp.where(below, middle + 1, begin), jnp.where(below, end, middle)

    start = jnp.zeros_like(wanted), jnp.full_like(wanted, pairs)
    begin, _ = jax.lax.fori_loop(0, pairs.bit_length(), halve, start)
    write(out, wanted, wanted <= blocks, begin)
