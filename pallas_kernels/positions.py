"""What `positions` says about a row: where each token's sequence begins and ends, and its blocks.

`positions: int32[B, L]` is the position of each token inside its own sequence, -1 for padding.
Everything that padding, ragged lengths and packing need follows from it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


def valid_tokens(positions: Int[Array, "*B L"]) -> Bool[Array, "*B L"]:
    """Tells real tokens from padding."""
    return positions >= 0


def sequence_start(positions: Int[Array, "*B L"]) -> Int[Array, "*B L"]:
    """Finds the row index of the first token of each token's sequence (itself at padding)."""
    return jnp.arange(positions.shape[-1], dtype=jnp.int32) - jnp.maximum(positions, 0)


def sequence_end(positions: Int[Array, "*B L"]) -> Int[Array, "*B L"]:
    """Finds the row index one past the last token of each token's sequence.

    A sequence goes on for as long as positions count up by one, so one reverse scan finds its end.
    The value at padding has no meaning.
    """
    length = positions.shape[-1]
    following = jnp.concatenate([positions[..., 1:], jnp.full_like(positions[..., :1], -2)], -1)
    index = jnp.arange(length, dtype=jnp.int32)
    last = jnp.where(following == positions + 1, length, index + 1)
    return jax.lax.cummin(last, axis=last.ndim - 1, reverse=True)


class Blocks(NamedTuple):
    """The blocks that each query may attend on the long-term path, all int32[*B, L].

    Attributes:
      first_slot: slot of the first block of the query's sequence.
      num_candidates: candidates are slots first_slot ... first_slot + num_candidates - 1.
      local_begin: first token of the block attended without being selected: the query's own block,
        or (bidirectional) the incomplete block at the sequence's end.
      local_size: its number of attended tokens: up to the query itself, or all of the tail.
      offset: slot w of the query's sequence begins at token `w * block_size + offset`.
    """

    first_slot: Int[Array, "*B L"]
    num_candidates: Int[Array, "*B L"]
    local_begin: Int[Array, "*B L"]
    local_size: Int[Array, "*B L"]
    offset: Int[Array, "*B L"]


def blocks(positions: Int[Array, "*B L"], *, block_size: int, causal: bool) -> Blocks:
    """Derives every query's candidate slots and local block from `positions`.

    Padding has no candidates and an empty local block.

    Args:
      positions: int32[*B, L], -1 at padding.
      block_size: S, tokens in a block.
      causal: whether a query sees only its past.
    """
    index = jnp.arange(positions.shape[-1], dtype=jnp.int32)
    real, position = valid_tokens(positions), jnp.maximum(positions, 0)
    start = sequence_start(positions)
    if causal:
        visible = position
        local_begin, local_size = index - position % block_size, position % block_size + 1
    else:
        end = sequence_end(positions)
        visible = end - start
        local_begin, local_size = end - visible % block_size, visible % block_size
    return Blocks(
        first_slot=start // block_size,
        num_candidates=jnp.where(real, visible // block_size, 0),
        local_begin=jnp.where(real, local_begin, 0),
        local_size=jnp.where(real, local_size, 0),
        offset=start % block_size,
    )


def own_slot(positions: Int[Array, "*B L"], *, block_size: int) -> Int[Array, "*B L"]:
    """Finds the slot of the block that each token stands in (complete or not)."""
    index = jnp.arange(positions.shape[-1], dtype=jnp.int32)
    return (index - jnp.maximum(positions, 0) % block_size) // block_size


def slot_offset(positions: Int[Array, "B L"], *, block_size: int) -> Int[Array, "B slots"]:
    """Finds where in each slot its block begins: at token `slot * block_size + offset`.

    0 for slots without a complete block.
    """
    place = jnp.arange(block_size, dtype=jnp.int32)
    return jnp.where(_begins_block(positions, block_size), place, 0).max(-1)


def has_block(positions: Int[Array, "B L"], *, block_size: int) -> Bool[Array, "B slots"]:
    """Tells which slots have a complete block, so that somebody may select it."""
    return _begins_block(positions, block_size).any(-1)


def _begins_block(positions, block_size):
    """Tells which tokens begin a complete block: bool[B, slots, S], by the slot they stand in."""
    length = positions.shape[-1]
    missing = -length % block_size
    padded = jnp.pad(positions, ((0, 0), (0, missing + block_size - 1)), constant_values=-1)
    first, last = padded[:, : length + missing], padded[:, block_size - 1 :]
    whole = (first >= 0) & (first % block_size == 0) & (last == first + block_size - 1)
    return whole.reshape(*whole.shape[:1], -1, block_size)


def validate_positions(positions, max_history: int | None = None) -> None:
    """Checks on the host that positions count up by one inside every sequence.

    The ops trust `positions`; this is the check to run once on your own batches when debugging. It
    copies the array to the host, so keep it out of compiled code.

    Args:
      positions: int[B, L] array, -1 at padding.
      max_history: if given, every position must be below it.

    Raises:
      ValueError: names the first row and column that break the rule.
    """
    positions = np.asarray(positions)
    if positions.ndim != 2 or not np.issubdtype(positions.dtype, np.integer):
        raise ValueError(
            f"positions must be int[B, L], got {positions.dtype}{list(positions.shape)}"
        )
    before = np.concatenate([np.full_like(positions[:, :1], -1), positions[:, :-1]], 1)
    good = (positions == -1) | (positions == 0) | ((positions == before + 1) & (positions > 0))
    if max_history is not None:
        good &= positions < max_history
    if not good.all():
        row, column = np.argwhere(~good)[0]
        raise ValueError(
            f"positions[{row}, {column}] is {positions[row, column]} after {before[row, column]}: "
            f"it must be -1 (padding), 0 (a new sequence) or one more than its left neighbour"
            + ("" if max_history is None else f", and below {max_history=}")
        )
