"""Both paths where every block is selected: one dense product in a band, weighted twice.

A query below position (N + 1) * S has at most N candidates, so its long-term path is its whole
past, but for blocks that the probability rule drops, and its short-term path is a part of that. The
two share logits and values: the gate adds their weights, not their outputs. Rows are cut into
chunks of at least `max_history` tokens; a chunk of queries sees its own chunk and the one before.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.block_selection.reference import (
    LEAST_PROBABILITY,
    Candidates,
    block_probability,
    candidate_mask,
    candidates,
)
from pallas_kernels.masked_softmax import at_least_f32, einsum, masked_softmax
from pallas_kernels.positions import own_slot, sequence_start
from pallas_kernels.tiles import join, split


def _dropped(query, summary_keys, row: Candidates, slot):
    """Marks the keys, [B, G, C, J], that stand in a block too improbable for the query."""
    logits = einsum("bcgrd,bwgd->bgcw", query, summary_keys) / query.shape[3]
    candidate = candidate_mask(row, jnp.arange(summary_keys.shape[1], dtype=jnp.int32))[:, None]
    dropped = candidate & (block_probability(logits, candidate) <= LEAST_PROBABILITY)
    return jnp.take_along_axis(dropped, slot[:, None, None, :], axis=-1, mode="clip")


def _attend_chunk(query, gate, row: Candidates, seen, keys, values, summary_keys, slot, window):
    """Attends one chunk of queries to its band; tokens and slots are counted from its beginning.

    Args:
      query: [B, C, G, R, D], scaled.
      gate: [B, C, G, R, 2].
      row: candidate slots of each query, [B, C].
      seen: first and last attended token, [B, C] each.
      keys: [B, J, G, D]; the chunk's own are the last C.
      values: [B, J, G, D].
      summary_keys: [B, W, G, D].
      slot: of each key, [B, J].
      window: tokens on the short-term path that need not be a power of two back.

    Returns:
      [B, C, G, R, D].
    """
    chunk, band = query.shape[1], keys.shape[1]
    column = jnp.arange(band, dtype=jnp.int32)
    visible = (column >= seen[0][..., None]) & (column <= seen[1][..., None])  # B C J
    distance = column[band - chunk :, None] - column
    near = (distance < window) | (distance & (distance - 1) == 0)
    dropped = _dropped(query, jax.lax.stop_gradient(summary_keys), row, slot)
    long = (visible[:, None] & ~dropped)[:, :, None]  # B G 1 C J
    short = (visible & near)[:, None, None]
    logits = einsum("bcgrd,bjgd->bgrcj", query, keys)
    gate = jnp.moveaxis(gate, 1, 3)  # B G R C 2
    weight = gate[..., :1] * masked_softmax(logits, long)
    weight += gate[..., 1:] * masked_softmax(logits, short)
    return einsum("bgrcj,bjgd->bcgrd", weight, values)


def _with_previous(x):
    """Joins each chunk with the one before it, [n, B, C, ...] -> [n, B, 2C, ...], if there is."""
    if len(x) == 1:
        return x
    before = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    return jnp.concatenate([before, x], 2)


def band_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    summary_keys: Float[Array, "B slots G D"],
    gate: Float[Array, "B L H 2"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    window: int,
    max_history: int,
) -> Float[Array, "B L H D"]:
    """Attends as `blossom_attention` does where every block is selected; causal only.

    Args:
      q: queries, rotated.
      k: keys, rotated.
      v: values.
      summary_keys: one key a block, for the rule that drops improbable blocks; no gradient.
      gate: weights of the (long-term, short-term) path.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      block_size: S, tokens in a block.
      window: W, most recent tokens on the short-term path.
      max_history: positions stay below it, and it is at most (N + 1) * block_size.

    Returns:
      [B, L, H, D] in q's dtype, zero at padding.
    """
    b, length, h, d = q.shape
    g = k.shape[2]
    slots = -(-max_history // block_size)
    chunk = slots * block_size
    index = jnp.arange(length, dtype=jnp.int32)
    row = candidates(positions, block_size=block_size, causal=True, mask_own_block=False)
    by_query = (
        at_least_f32(q).reshape(b, length, g, h // g, d) * d**-0.5,
        at_least_f32(gate).reshape(b, length, g, h // g, 2),
        row,
        (sequence_start(positions), jnp.where(positions >= 0, index, -1)),
    )
    by_key = at_least_f32(k), at_least_f32(v)
    by_query = jax.tree.map(lambda x: split(x, chunk, fill=-1), by_query)
    band = [_with_previous(split(x, chunk)) for x in by_key]
    band.append(_with_previous(split(at_least_f32(summary_keys), slots)))
    band.append(_with_previous(split(own_slot(positions, block_size=block_size), chunk)))
    chunks = by_query[0].shape[0]
    begin = jnp.arange(chunks, dtype=jnp.int32) * chunk - (band[0].shape[2] - chunk)

    @jax.checkpoint
    def step(xs):
        begin, (query, gate, row, seen), (keys, values, summary, slot) = xs
        row = row._replace(first=row.first - begin // block_size)
        seen = seen[0] - begin, jnp.where(seen[1] < 0, -1, seen[1] - begin)
        slot = slot - begin // block_size
        return _attend_chunk(query, gate, row, seen, keys, values, summary, slot, window)

    out = jax.lax.map(step, (begin, by_query, band))
    return join(out, length).reshape(q.shape).astype(q.dtype)
