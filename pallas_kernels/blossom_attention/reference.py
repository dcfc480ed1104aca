"""Blossom attention as its definition: both paths in full, added by the gate."""

from jaxtyping import Array, Float, Int

from pallas_kernels.block_selection.reference import block_selection
from pallas_kernels.masked_softmax import at_least_f32
from pallas_kernels.power_attention.reference import power_attention
from pallas_kernels.selected_attention.reference import selected_attention


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
    """See `pallas_kernels.blossom_attention`."""
    slots, probability = block_selection(
        q,
        summary_keys,
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
