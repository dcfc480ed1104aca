"""The long-term path where every block is selected: dense attention in a band.

A query below position (N + 1) * S has at most N candidates, so it attends its whole past, but for
blocks that the probability rule drops. Rows are cut into chunks of at least `max_history` tokens; a
chunk of queries then sees its own chunk and the one before, and nothing else can matter.
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
from pallas_kernels.masked_softmax import MASKED, at_least_f32
from pallas_kernels.positions import own_slot, sequence_start
from pallas_kernels.tiles import join, split


def _with_previous(x):
    """Joins each chunk with the one before it: [n, B, C, ...] -> [n, B, 2C, ...]."""
    before = jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
    return jnp.concatenate([before, x], 2)


def _attend_chunk(query, keys, values, summary_keys, row: Candidates, seen, slot):
    """Attends one chunk of queries to its band.

    Args:
      query: [B, C, G, R, D], scaled.
      keys: [B, J, G, D].
      values: [B, J, G, D].
      summary_keys: [B, W, G, D], the band's slots.
      row: candidate slots of each query, counted from the band's first slot, [B, C].
      seen: first and last attended token, counted from the band's first token, [B, C] each.
      slot: slot of each key, counted from the band's first slot, [B, J].
    """
    logits = jnp.einsum("bcgd,bwgd->bcgw", query.mean(3), summary_keys)
    candidate = candidate_mask(row, jnp.arange(summary_keys.shape[1], dtype=jnp.int32))
    probability = block_probability(logits, candidate[:, :, None])
    dropped = candidate[:, :, None] & (probability <= LEAST_PROBABILITY)  # B C G W
    dropped = jnp.take_along_axis(dropped, slot[:, None, None, :], axis=-1, mode="clip")
    column = jnp.arange(keys.shape[1], dtype=jnp.int32)
    allowed = (column >= seen[0][..., None]) & (column <= seen[1][..., None])
    allowed = jnp.moveaxis(allowed[:, :, None] & ~dropped, 1, 2)[:, :, None]  # B G 1 C J
    logits = jnp.einsum("bcgrd,bjgd->bgrcj", query, keys)
    logits = jnp.where(allowed, logits, MASKED)
    weight = jnp.where(allowed, jnp.exp(logits - logits.max(-1, keepdims=True)), 0)
    total = weight.sum(-1, keepdims=True)
    weight = weight / jnp.where(total > 0, total, 1)
    return jnp.einsum("bgrcj,bjgd->bcgrd", weight, values)


def band_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    summary_keys: Float[Array, "B slots G D"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    max_history: int,
) -> Float[Array, "B L H D"]:
    """Attends as `selected_attention` does where every block is selected; causal only.

    Args:
      q: queries, rotated.
      k: keys, rotated.
      v: values.
      summary_keys: one key a block, for the rule that drops improbable blocks; no gradient.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      block_size: S, tokens in a block.
      max_history: positions stay below it, and it is at most (N + 1) * block_size.

    Returns:
      [B, L, H, D] in q's dtype, zero at padding.
    """
    b, length, h, d = q.shape
    g = k.shape[2]
    chunk = -(-min(max_history, length) // block_size) * block_size
    slots = chunk // block_size
    query = at_least_f32(q).reshape(b, length, g, h // g, d) * d**-0.5
    row = candidates(positions, block_size=block_size, causal=True, mask_own_block=False)
    index = jnp.arange(length, dtype=jnp.int32)
    last = jnp.where(positions >= 0, index, -1)
    by_query = [split(x, chunk) for x in (query, row.first, row.count, last)]
    first = split(sequence_start(positions), chunk)
    band = [_with_previous(split(at_least_f32(x), chunk)) for x in (k, v)]
    summary = _with_previous(split(at_least_f32(jax.lax.stop_gradient(summary_keys)), slots))
    slot = _with_previous(split(own_slot(positions, block_size=block_size), chunk))
    origin = (jnp.arange(by_query[0].shape[0], dtype=jnp.int32) - 1) * chunk

    @jax.checkpoint
    def step(xs):
        origin, query, first_slot, count, last, first, keys, values, summary, slot = xs
        row = Candidates(first_slot - origin // block_size, count, jnp.full_like(count, -1))
        seen = (first - origin, jnp.where(last >= 0, last - origin, -1))
        return _attend_chunk(query, keys, values, summary, row, seen, slot - origin // block_size)

    out = jax.lax.map(step, (origin, *by_query, first, *band, summary, slot))
    return join(out, length).reshape(q.shape).astype(q.dtype)
