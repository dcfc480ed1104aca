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
      summary_keys: one key for each complete block; there may be none, where no blocks are chosen.
    """

    tokens: Float[Array, "B G C E"]
    summary_keys: Float[Array, "B G slots D"]


class Place(NamedTuple):
    """Where the new token stands, and what it may read.

    Attributes:
      position: int32[B], of the token inside its sequence; it is in its ring already.
      first: int32[B], position of the first token that may be read, a multiple of S; the ring holds
        all tokens from there on.
    """

    position: Int[Array, "B"]
    first: Int[Array, "B"]


def append(
    tokens: Float[Array, "B G C E"],
    k: Float[Array, "B 1 G D"],
    v: Float[Array, "B 1 G D"],
    position: Int[Array, "B"],
) -> Float[Array, "B G C E"]:
    """Puts a token's rotated key and its value into the ring."""
    row = jnp.concatenate([k, v], -1).swapaxes(1, 2)
    return write(tokens, row, position % tokens.shape[2])


def write(
    ring: Float[Array, "B G C E"], row: Float[Array, "B G 1 E"], at: Int[Array, "B"]
) -> Float[Array, "B G C E"]:
    """Overwrites one row of each user's ring; in place, where the ring is donated."""
    update = jax.vmap(lambda ring, row, at: jax.lax.dynamic_update_slice_in_dim(ring, row, at, 1))
    return update(ring, row, at)


def last_keys(
    tokens: Float[Array, "B G C E"], place: Place, number: int
) -> Float[Array, "B G number D"]:
    """Returns the newest `number` keys, oldest first; zero before the first that may be read."""
    token = place.position[:, None] + jnp.arange(1 - number, 1)  # [B, number]
    rows = jnp.broadcast_to((token % tokens.shape[2])[:, None], (*tokens.shape[:2], number))
    keys, _ = _keys_and_values(tokens, rows, 1)
    return jnp.where((token >= place.first[:, None])[:, None, :, None], keys, 0)


def block_selection(
    q: Float[Array, "B 1 H D"],
    summary_keys: Float[Array, "B G slots D"],
    place: Place,
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
    block = (place.first // block_size)[:, None] + jnp.arange(slots)  # [B, slots]
    logits = jnp.take_along_axis(logits, (block % slots)[:, None], axis=-1)
    candidate = block < (place.position // block_size)[:, None]
    chosen, _ = select_top(block_probability(logits, candidate[:, None]), num_selected)
    return jnp.where(chosen >= 0, chosen + block[:, :1, None], -1)


def selected_attention(
    q: Float[Array, "B 1 H D"],
    tokens: Float[Array, "B G C E"],
    blocks: Int[Array, "B G N"],
    place: Place,
    *,
    block_size: int,
) -> Float[Array, "B 1 H D"]:
    """Attends to the selected blocks, and to the own block up to the query (LTIS)."""
    position = place.position[:, None, None]
    own = jnp.broadcast_to(position // block_size, (*blocks.shape[:2], 1))
    read = jnp.concatenate([blocks, own], -1)  # [B, G, N + 1]
    inside = jnp.arange(block_size)
    seen = (read[..., None] >= 0) & (read[..., None] * block_size + inside <= position[..., None])
    keys, values = _keys_and_values(tokens, read * block_size % tokens.shape[2], block_size)
    return attend(q, _by_token(keys), _by_token(values), seen.reshape(*blocks.shape[:2], 1, -1))


def power_attention(
    q: Float[Array, "B 1 H D"], tokens: Float[Array, "B G C E"], place: Place, *, window: int
) -> Float[Array, "B 1 H D"]:
    """Attends to the last W tokens, and to those a power of two back (STIS)."""
    capacity = tokens.shape[2]
    distance = jnp.asarray(allowed_distances(window, True, capacity), jnp.int32)
    token = place.position[:, None] - distance  # [B, J]
    rows = jnp.broadcast_to((token % capacity)[:, None], (*tokens.shape[:2], distance.size))
    keys, values = _keys_and_values(tokens, rows, 1)
    seen = (token >= place.first[:, None])[:, None, None]
    return attend(q, _by_token(keys), _by_token(values), seen)


def dense_attention(
    q: Float[Array, "B 1 H D"], tokens: Float[Array, "B G C E"], place: Place
) -> Float[Array, "B 1 H D"]:
    """Attends to every token from the first on, at a cost that grows with the capacity."""
    capacity = tokens.shape[2]
    position, first = place.position[:, None], place.first[:, None]
    behind = (position - jnp.arange(capacity)) % capacity
    keys, values = jnp.split(tokens, 2, -1)
    return attend(q, _by_token(keys), _by_token(values), (behind <= position - first)[:, None, None])


def _keys_and_values(tokens, begin, size: int):
    """Reads `size` rows from each of `begin` [B, G, n] on: [B, G, n * size, D] twice."""
    b, g, n = begin.shape
    return jnp.split(read_blocks(tokens, begin, size).reshape(b, g, n * size, -1), 2, -1)


def _by_token(x):
    """[B, G, J, D] -> [B, J, G, D], which `attend` wants."""
    return x.swapaxes(1, 2)
