"""Block selection as its definition: all scores, one softmax, the top N."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.masked_softmax import MASKED, at_least_f32, einsum
from pallas_kernels.positions import blocks, own_slot

NOTHING_LOGIT = -1000.0  # the extra logit of "no block"
LEAST_PROBABILITY = 1e-10  # a block at or below it is dropped


class Candidates(NamedTuple):
    """The slots that each query may select: `number` of them from `first` on, but for `excluded`.

    Attributes:
      first: int32[*B, L].
      number: int32[*B, L], 0 at padding.
      excluded: int32[*B, L], -1 for none.
    """

    first: Int[Array, "*B L"]
    number: Int[Array, "*B L"]
    excluded: Int[Array, "*B L"]


def candidates(
    positions: Int[Array, "*B L"], *, block_size: int, causal: bool, mask_own_block: bool
) -> Candidates:
    """Derives every query's candidate slots from `positions`."""
    row = blocks(positions, block_size=block_size, causal=causal)
    excluded = jnp.full_like(positions, -1)
    if mask_own_block and not causal:
        excluded = own_slot(positions, block_size=block_size)
    return Candidates(row.first_slot, row.num_candidates, excluded)


def candidate_mask(row: Candidates, slot: Int[Array, " slots"]) -> Bool[Array, "*B L slots"]:
    """Marks which of the given slots each query may select."""
    first, number, excluded = (x[..., None] for x in row)
    return (slot >= first) & (slot < first + number) & (slot != excluded)


def select_top(probability: Float[Array, "*B slots"], num_selected: int):
    """Takes the N most probable slots, ties to the lower; dropped ones are slot -1, probability 0.

    Returns:
      slots int32[*B, N] and probability [*B, N], by falling probability.
    """
    missing = max(0, num_selected - probability.shape[-1])
    padded = jnp.pad(probability, [(0, 0)] * (probability.ndim - 1) + [(0, missing)])
    top, slots = jax.lax.top_k(padded, num_selected)
    keep = top > LEAST_PROBABILITY
    return jnp.where(keep, slots, -1).astype(jnp.int32), jnp.where(keep, top, 0)


def block_probability(logits: Float[Array, "*B slots"], candidate: Bool[Array, "*#B slots"]):
    """Softmax over the candidates and the extra logit of "no block"."""
    logits = jnp.where(candidate, logits, MASKED)
    highest = jax.lax.stop_gradient(jnp.maximum(logits.max(-1, keepdims=True), NOTHING_LOGIT))
    weight = jnp.where(candidate, jnp.exp(logits - highest), 0)
    return weight / (weight.sum(-1, keepdims=True) + jnp.exp(NOTHING_LOGIT - highest))


def block_selection(
    q: Float[Array, "B L H D"],
    summary_keys: Float[Array, "B slots G D"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    num_selected: int,
    causal: bool,
    mask_own_block: bool,
) -> tuple[Int[Array, "B L G N"], Float[Array, "B L G N"]]:
    """See `pallas_kernels.block_selection`."""
    b, length, h, d = q.shape
    slots, g = summary_keys.shape[1:3]
    mean = at_least_f32(q).reshape(b, length, g, h // g, d).mean(3)
    logits = d**-0.5 * einsum("blgd,bwgd->blgw", mean, at_least_f32(summary_keys))
    row = candidates(positions, block_size=block_size, causal=causal, mask_own_block=mask_own_block)
    candidate = candidate_mask(row, jnp.arange(slots, dtype=jnp.int32))
    probability = block_probability(logits, candidate[:, :, None])
    return select_top(probability, num_selected)
