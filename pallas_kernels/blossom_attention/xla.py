"""Blossom attention in plain XLA: the two paths one after the other, then the gate."""

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.block_selection.xla import block_selection
from pallas_kernels.blossom_attention.xla_band import band_attention
from pallas_kernels.masked_softmax import at_least_f32
from pallas_kernels.power_attention.xla import power_attention
from pallas_kernels.selected_attention.xla import selected_attention


def blossom_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    summary_keys: Float[Array, "B slots G D"],
    gate: Float[Array, "B L H 2"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    num_selected: int,
    window: int,
    causal: bool,
    mask_own_block: bool,
    selection_gradient: str,
    max_history: int,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.blossom_attention`.

    Histories of at most (num_selected + 1) * block_size events select every block, so there both
    paths are one dense band. It serves the causal form without a selection gradient.
    """
    trains = selection_gradient != "none"
    everything = max_history <= (num_selected + 1) * block_size
    if everything and causal and not trains:
        return band_attention(
            q,
            k,
            v,
            summary_keys,
            gate,
            positions,
            block_size=block_size,
            window=window,
            max_history=max_history,
        )
    scored = (q, summary_keys) if trains else jax.lax.stop_gradient((q, summary_keys))
    slots, probability = block_selection(
        *scored,
        positions,
        block_size=block_size,
        num_selected=num_selected,
        causal=causal,
        mask_own_block=mask_own_block,
    )
    long_term = selected_attention(
        q,
        k,
        v,
        slots,
        probability,
        positions,
        block_size=block_size,
        causal=causal,
        selection_gradient=selection_gradient,
    )
    short_term = power_attention(
        q, k, v, positions, window=window, causal=causal, max_history=max_history
    )
    gate = at_least_f32(gate)
    out = gate[..., :1] * at_least_f32(long_term) + gate[..., 1:] * at_least_f32(short_term)
    return out.astype(q.dtype)
