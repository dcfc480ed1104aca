"""Attention to a window and to a few averages of all that came before it: no block is chosen.

A query attends its own block up to itself, as on the long-term path, and as many keys beside it as
N selected blocks hold; but these are the tokens just before, and K averages of equal stretches of
the older ones. It tells what choosing blocks is worth over remembering the past in outline.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.masked_softmax import at_least_f32, einsum, masked_softmax
from pallas_kernels.positions import sequence_start


def summary_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    num_selected: int,
    num_summaries: int,
) -> Float[Array, "B L H D"]:
    """Attends the own block, the N S - K tokens before it, and K averages of the older tokens.

    Time and memory are linear in the length.

    Args:
      q: Queries, rotated.
      k: Keys, rotated; their averages are the keys of the averages.
      v: Values, likewise.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      block_size: S, tokens in a block.
      num_selected: N, blocks whose number of keys is spent.
      num_summaries: K, at most N S; fewer are there while there are fewer older tokens.

    Returns:
      [B, L, H, D] in q's dtype, zero at padding.
    """
    (b, length, h, d), g = q.shape, k.shape[2]
    window = num_selected * block_size - num_summaries
    index, start = jnp.arange(length, dtype=jnp.int32), sequence_start(positions)
    begin = jnp.maximum(index - positions % block_size - window, start)
    begin = jnp.where(positions >= 0, begin, length)  # padding attends nothing
    older = jnp.where(positions >= 0, begin - start, 0)
    keys_values = jnp.concatenate([at_least_f32(k), at_least_f32(v)], -1)

    # So long that no query reaches back beyond the chunk before its own.
    chunk = min(window + block_size, length)
    queries = _chunks(at_least_f32(q).reshape(b, length, g, h // g, d), chunk)
    begin, index = _chunks(begin, chunk, fill=length), _chunks(index[None], chunk, fill=-1)
    seen = _with_previous(index, fill=-1)[:, :, None]  # [1, n, 1, 2C]
    in_window = (seen >= begin[..., None]) & (seen <= index[..., None])  # [B, n, C, 2C]
    recent = _with_previous(_chunks(keys_values, chunk))  # [B, n, 2C, G, 2D]
    averages, exists = (
        _chunks(x, chunk) for x in _averages(keys_values, start, older, num_summaries)
    )

    keys, values = jnp.split(recent, 2, -1)
    average_keys, average_values = jnp.split(averages, 2, -1)
    logits = einsum("bnigrd,bnjgd->bngrij", queries, keys)
    average_logits = einsum("bnigrd,bnikgd->bngrik", queries, average_keys)
    allowed = jnp.concatenate([in_window, exists], -1)[:, :, None, None]
    weight = masked_softmax(d**-0.5 * jnp.concatenate([logits, average_logits], -1), allowed)
    weight, average_weight = jnp.split(weight, [2 * chunk], -1)
    out = einsum("bngrij,bnjgd->bnigrd", weight, values)
    out += einsum("bngrik,bnikgd->bnigrd", average_weight, average_values)
    return out.reshape(b, -1, h, d)[:, :length].astype(q.dtype)


def _averages(
    x: Float[Array, "B L G E"], start: Int[Array, "B L"], older: Int[Array, "B L"], number: int
) -> tuple[Float[Array, "B L K G E"], Bool[Array, "B L K"]]:
    """Averages `number` stretches of the first `older` tokens from `start` on, for every query.

    Returns:
      The averages, and which of them are of any token.
    """
    length = x.shape[1]
    edges = jnp.arange(number + 1) * older[:, :, None] // number  # [B, L, K + 1]
    running = jnp.pad(jnp.cumsum(x, axis=1), [(0, 0), (1, 0), (0, 0), (0, 0)])
    at = jnp.minimum(start[:, :, None] + edges, length).reshape(len(x), -1, 1, 1)
    sums = jnp.take_along_axis(running, at, axis=1).reshape(*edges.shape, *x.shape[2:])
    count = jnp.diff(edges)
    return jnp.diff(sums, axis=2) / jnp.maximum(count, 1)[..., None, None], count > 0


def _chunks(x: Array, size: int, fill=0) -> Array:
    """Cuts [B, L, ...] into [B, n, size, ...], the last chunk filled up."""
    count = -(-x.shape[1] // size)
    margin = [(0, 0), (0, count * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, margin, constant_values=fill)
    return x.reshape(x.shape[0], count, size, *x.shape[2:])


def _with_previous(chunks: Array, fill=0) -> Array:
    """Puts the chunk before each in front of it: [B, n, C, ...] -> [B, n, 2C, ...]."""
    margin = [(0, 0), (1, 0)] + [(0, 0)] * (chunks.ndim - 2)
    before = jnp.pad(chunks, margin, constant_values=fill)[:, :-1]
    return jnp.concatenate([before, chunks], axis=2)
