"""Block selection in plain XLA: one tile of queries against all summary keys at a time.

The scores of a tile, [B, T, G, slots], are the largest array there is, forward and backward; the
backward pass computes them again.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles
from pallas_kernels.block_selection.reference import (
    LEAST_PROBABILITY,
    Candidates,
    block_probability,
    candidate_mask,
    candidates,
)
from pallas_kernels.masked_softmax import at_least_f32, einsum


def _probability(mean_query, summary_keys, row: Candidates):
    """Probability of every slot for a tile of queries: [B, T, G, slots]."""
    slot = jnp.arange(summary_keys.shape[1], dtype=jnp.int32)
    logits = einsum("btgd,bwgd->btgw", mean_query, summary_keys)
    return block_probability(logits, candidate_mask(row, slot)[:, :, None])


def _top(probability, num_selected):
    """Takes the largest N times over; faster here than a sort. Ties go to the lower slot."""
    slot = jnp.arange(probability.shape[-1], dtype=jnp.int32)
    slots, chosen = [], []
    for _ in range(num_selected):
        highest = probability.max(-1, keepdims=True)
        best = jnp.where(probability == highest, slot, slot.size).min(-1, keepdims=True)
        keep = highest > LEAST_PROBABILITY
        slots.append(jnp.where(keep, best, -1))
        chosen.append(jnp.where(keep, highest, 0))
        probability = jnp.where(slot == best, -1, probability)
    return jnp.concatenate(slots, -1), jnp.concatenate(chosen, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _select(mean_query, summary_keys, row, num_selected):
    tile = tiles.tile_length(*mean_query.shape[:2])

    def step(xs):
        query, *row_tile = xs
        return _top(_probability(query, summary_keys, Candidates(*row_tile)), num_selected)

    found = jax.lax.map(step, tuple(tiles.split(x, tile) for x in (mean_query, *row)))
    return tuple(tiles.join(x, mean_query.shape[1]) for x in found)


def _save(mean_query, summary_keys, row, num_selected):
    slots, probability = _select(mean_query, summary_keys, row, num_selected)
    return (slots, probability), (mean_query, summary_keys, row, slots)


def _backward(num_selected, saved, d_out):
    mean_query, summary_keys, row, slots = saved
    length = mean_query.shape[1]
    tile = tiles.tile_length(*mean_query.shape[:2])
    slot = jnp.arange(summary_keys.shape[1], dtype=jnp.int32)

    def step(d_keys, xs):
        query, chosen, d_chosen, *row_tile = xs
        probability = _probability(query, summary_keys, Candidates(*row_tile))
        d_probability = jnp.zeros_like(probability)
        for n in range(num_selected):
            d_probability += jnp.where(chosen[..., n, None] == slot, d_chosen[..., n, None], 0)
        delta = (d_probability * probability).sum(-1, keepdims=True)
        d_logits = probability * (d_probability - delta)
        d_query = einsum("btgw,bwgd->btgd", d_logits, summary_keys)
        return d_keys + einsum("btgw,btgd->bwgd", d_logits, query), d_query

    xs = tuple(tiles.split(x, tile) for x in (mean_query, slots, d_out[1], *row))
    d_keys, d_query = jax.lax.scan(step, jnp.zeros_like(summary_keys), xs)
    return tiles.join(d_query, length), d_keys, None


_select.defvjp(_save, _backward)


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
    g = summary_keys.shape[2]
    mean_query = at_least_f32(q).reshape(b, length, g, h // g, d).mean(3) * d**-0.5
    row = candidates(positions, block_size=block_size, causal=causal, mask_own_block=mask_own_block)
    return _select(mean_query, at_least_f32(summary_keys), row, num_selected)
