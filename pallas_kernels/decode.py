"""Attention of one new token to its history: both paths for a single query, by plain gathers.

A history lies in rings. The token at position j is row j % C of `tokens`, and the block at position
r * S is slot r % (C / S) of `summary_keys`, for a capacity of C tokens, a multiple of S. So nothing
moves when a history outgrows its ring: a new block takes the place of the oldest. A query reads
what stands from its history's first kept token on, the beginning of a block. Whatever the length,
it reads N + 1 blocks, W + log2(C) tokens, and one key for each block to choose among.

The rules of selection and masking are those of the ops' `reference.py`, and are taken from there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.block_selection.reference import block_probability, select_top
from pallas_kernels.masked_softmax import at_least_f32, attend, einsum
from pallas_kernels.power_attention.xla import allowed_distances
from pallas_kernels.streamed import read_blocks


class History(NamedTuple):
    """What a layer keeps of the tokens of B users.

    Attributes:
      tokens: rotated key and value of each token, side by side (E = 2 D).
      summary_keys: one key for each complete block; None where no blocks are chosen.
    """

    tokens: Float[Array, "B G C E"]
    summary_keys: Float[Array, "B G slots D"] | None


class Token(NamedTuple):
    """The new token of each user, which is read as if it were in its ring already.

    Rings are only read while it attends, and written when all is done. XLA would copy a ring that
    one program both writes and reads.

    Attributes:
      row: its rotated key and its value, side by side.
      position: int32[B], inside its sequence.
      first: int32[B], position of the first token that it may read, a multiple of S; the ring holds
        all tokens from there on.
    """

    row: Float[Array, "B G 1 E"]
    position: Int[Array, "B"]
    first: Int[Array, "B"]


def write(
    ring: Float[Array, "B G C E"], row: Float[Array, "B G 1 E"], number: Int[Array, "B"]
) -> Float[Array, "B G C E"]:
    """Puts a token, or a summary key, in its place in the ring.

    Args:
      ring: of either; donate it, and it is written in place.
      row: one for each user.
      number: position of the token, or number of the block.
    """

    def write_one(ring, row, number):
        return jax.lax.dynamic_update_slice_in_dim(ring, row, number % ring.shape[1], axis=1)

    return jax.vmap(write_one)(ring, row, number)


def last_keys(
    tokens: Float[Array, "B G C E"], new: Token, number: int
) -> Float[Array, "B G number D"]:
    """Returns the newest `number` keys, oldest first; zero before the first that may be read."""
    token = new.position[:, None] + jnp.arange(1 - number, 1)  # [B, number]
    keys, _ = _read(tokens, new, jnp.broadcast_to(token[:, None], (*tokens.shape[:2], number)))
    return jnp.where((token >= new.first[:, None])[:, None, :, None], keys, 0)


def block_selection(
    q: Float[Array, "B 1 H D"],
    summary_keys: Float[Array, "B G slots D"],
    new: Token,
    *,
    block_size: int,
    num_selected: int,
) -> Int[Array, "B G N"]:
    """Selects the N most probable blocks between the first that may be read and the own one.

    Returns:
      Blocks by number, position // S, by falling probability, ties to the earlier; -1 where fewer
      than N remain. Probabilities at or below 1e-10 are dropped, as in `pallas_kernels`.
    """
    b, _, h, d = q.shape
    g, slots = summary_keys.shape[1:3]
    mean = at_least_f32(q).reshape(b, g, h // g, d).mean(2)
    logits = d**-0.5 * einsum("bgd,bgwd->bgw", mean, at_least_f32(summary_keys))
    # In the order of the blocks and not of the ring, for the sake of ties.
    block = (new.first // block_size)[:, None] + jnp.arange(slots)  # [B, slots]
    logits = jnp.take_along_axis(logits, (block % slots)[:, None], axis=-1)
    candidate = block < (new.position // block_size)[:, None]
    chosen, _ = select_top(block_probability(logits, candidate[:, None]), num_selected)
    return jnp.where(chosen >= 0, chosen + block[:, :1, None], -1)


def selected_attention(
    q: Float[Array, "B 1 H D"],
    tokens: Float[Array, "B G C E"],
    blocks: Int[Array, "B G N"],
    new: Token,
    *,
    block_size: int,
) -> Float[Array, "B 1 H D"]:
    """Attends to the selected blocks, and to the own block up to the query (LTIS)."""
    position = new.position[:, None, None]
    own = jnp.broadcast_to(position // block_size, (*blocks.shape[:2], 1))
    begin = jnp.concatenate([blocks, own], -1) * block_size  # [B, G, N + 1]
    token = begin[..., None] + jnp.arange(block_size)
    seen = (token >= 0) & (token <= position[..., None])
    keys, values = _read(tokens, new, begin, block_size)
    return _attend(q, keys, values, seen.reshape(*blocks.shape[:2], -1))


def power_attention(
    q: Float[Array, "B 1 H D"], tokens: Float[Array, "B G C E"], new: Token, *, window: int
) -> Float[Array, "B 1 H D"]:
    """Attends to the last W tokens, and to those a power of two back (STIS)."""
    distance = jnp.asarray(allowed_distances(window, True, tokens.shape[2]), jnp.int32)
    token = (new.position[:, None] - distance)[:, None]  # [B, 1, J]
    tokens_of_head = jnp.broadcast_to(token, (*tokens.shape[:2], distance.size))
    keys, values = _read(tokens, new, tokens_of_head)
    return _attend(q, keys, values, token >= new.first[:, None, None])


def dense_attention(
    q: Float[Array, "B 1 H D"], tokens: Float[Array, "B G C E"], new: Token
) -> Float[Array, "B 1 H D"]:
    """Attends to every token from the first on, at a cost that grows with the capacity."""
    position, first = new.position[:, None], new.first[:, None]
    behind = (position - jnp.arange(tokens.shape[2])) % tokens.shape[2]  # [B, C]
    rows = jnp.where(behind[:, None, :, None] == 0, new.row, tokens)
    keys, values = jnp.split(rows, 2, -1)
    return _attend(q, keys, values, (behind <= position - first)[:, None])


def _read(tokens, new: Token, begin, size: int = 1):
    """Reads `size` tokens from each of `begin` [B, G, n] on: keys and values, [B, G, n * size, D].

    Where there is no such token, something is read.
    """
    token = begin[..., None] + jnp.arange(size)  # [B, G, n, size]
    rows = read_blocks(tokens, begin % tokens.shape[2], size)  # [B, G, n, size, E]
    is_new = (token == new.position[:, None, None, None])[..., None]
    rows = jnp.where(is_new, new.row[:, :, None], rows)
    return jnp.split(rows.reshape(*tokens.shape[:2], -1, tokens.shape[3]), 2, -1)


def _attend(q, keys, values, seen):
    """Attends to lists [B, G, J, D], where seen [B, #G, J]."""
    return attend(q, keys.swapaxes(1, 2), values.swapaxes(1, 2), seen[:, :, None])
