"""Which of a product's keys each query attends, as the bits of a word: tested in one instruction.

Where queries are walked (`attended`), a tile of T queries meets columns of keys: `band` tokens, the
last of them the tile's own, then T tokens for each shift. A query's distances stand in the same
order for all, moved by its own place in the tile. So a pattern that is known when compiling is
moved, and cut where the sequence begins. Where keys are walked (`attending`), a tile of T keys
meets the queries of its own tile and of those ahead, and a query's word has a bit for each key.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.power_attention.near import KEYS_AT_ONCE, NearSizes


def attended(position, index, n, sizes: NearSizes) -> dict:
    """Finds the keys of the n-th product that each path attends.

    Args:
      position: int32[rows] of query heads, -1 where there is no query.
      index: int32[rows], token in the tile.
      n: of the product; may be known only when running.
      sizes: static sizes.

    Returns:
      bool[rows, keys] by path.
    """
    assert sizes.tokens <= 32  # patterns move by less than a word
    words, begin = {}, n * KEYS_AT_ONCE
    paths = sizes.products[n] if isinstance(n, int) else sizes.paths
    own = sizes.behind + index - begin  # where the query's own token stands
    if "long" in paths:
        in_block = jnp.where(position >= 0, jax.lax.rem(position, sizes.block_size), -1)
        block = _pattern(sizes.behind - d for d in range(sizes.block_size))
        words["long"] = _moved(block, n, index) & ~_below(own - in_block)
    if "short" in paths:
        far = range(1, 1 + sizes.behind)
        near = [*range(sizes.window), *(d for d in far if d >= sizes.window and not d & (d - 1))]
        band = _pattern(sizes.behind - d for d in near)
        words["short"] = _moved(band, n, index) & ~_below(own - position)
        shifts = _pattern(sizes.band + sizes.tokens * m for m in range(sizes.shifts))
        reached = 32 - jax.lax.clz(jnp.maximum(position, 0)) - (sizes.first_shift.bit_length() - 1)
        end = sizes.band + sizes.tokens * reached - begin
        words["short"] |= _moved(shifts, n, index) & _below(end)
    bit = jax.lax.shift_left(jnp.int32(1), jnp.arange(KEYS_AT_ONCE, dtype=jnp.int32))
    return {name: (word[:, None] & bit[None, :]) != 0 for name, word in words.items()}


def attending(position, index, step, sizes: NearSizes):
    """Finds the keys of a tile, at most 16, that the queries of the same or a later tile attend.

    Args:
      position: int32[rows] of query heads, -1 where there is no query.
      index: int32[rows], token in its tile.
      step: int32, how many tiles ahead of the keys' it is.
      sizes: static sizes.

    Returns:
      int32[rows]: a bit for each key, by path, the first path in the lowest.
    """
    assert sizes.tokens <= 16 and sizes.tokens * len(sizes.paths) <= 32  # bits of a word
    own, words = step * sizes.tokens + index, []  # distance from the tile's first key
    if "long" in sizes.paths:
        in_block = jnp.where(position >= 0, jax.lax.rem(position, sizes.block_size), -1)
        words.append(_below(own + 1) & ~_below(own - in_block))
    if "short" in sizes.paths:
        last = sizes.tokens - 1
        pattern = jnp.broadcast_to(_near(step, sizes), index.shape)
        near = jax.lax.shift_right_logical(pattern, last - index)
        words.append(near & ~_below(own - position))
    every = (1 << sizes.tokens) - 1
    return sum(jax.lax.shift_left(w & every, n * sizes.tokens) for n, w in enumerate(words))


def _near(step, sizes: NearSizes):
    """Finds the near keys of the last query of a tile `step` tiles ahead of the keys'.

    Returns:
      int32: bit b, counted from the tile's first key, is the distance `(step + 1) * T - 1 - b`.
    """
    farthest, last = sizes.behind + sizes.tokens, sizes.tokens - 1

    def word(m):
        distances = {m * sizes.tokens + last - bit: bit for bit in range(2 * sizes.tokens - 1)}
        near = (d for d in distances if d < sizes.window or not d & (d - 1))
        return _pattern(distances[d] for d in near if 0 <= d < farthest)

    pattern = jnp.int32(0)
    for m in range(farthest // sizes.tokens):
        pattern = jnp.where(step == m, jnp.int32(word(m)), pattern)
    return pattern


def _pattern(bits) -> int:
    return sum(1 << bit for bit in set(bits))


def _moved(pattern: int, n, index):
    """Takes the n-th word of a pattern that is moved up by `index`, at most 31 bits."""
    word = jax.lax.shift_left(_word(pattern, n, index), index)
    if isinstance(n, int) and not pattern << 32 >> 32 * n & 0xFFFFFFFF:
        return word
    before = _word(pattern << 31, n, index)  # all of the word before but its first bit
    return word | jax.lax.shift_right_logical(before & 0x7FFFFFFF, 31 - index)


def _word(pattern: int, n, like):
    """Takes the n-th word of a pattern."""
    if isinstance(n, int):
        return _constant(pattern >> 32 * n, like)
    word = _constant(0, n)
    for m in range(1 + pattern.bit_length() // 32):
        word += (n == m).astype(jnp.int32) * _constant(pattern >> 32 * m, n)
    return jnp.broadcast_to(word, like.shape)


def _constant(word: int, like):
    word &= 0xFFFFFFFF
    return jnp.full_like(like, word - (word >> 31 << 32))


def _below(end):
    """Sets the bits below `end`, which may be out of the word on either side."""
    some = jax.lax.shift_left(jnp.full_like(end, 1), jnp.clip(end, 0, 31)) - 1
    return jnp.where(end > 31, -1, some)
