"""Blossom attention in plain XLA: the two streamed paths, or dense bands for short histories."""

from jaxtyping import Array, Float, Int

from pallas_kernels.block_selection.xla import block_selection
from pallas_kernels.blossom_attention import xla_band
from pallas_kernels.blossom_attention.paths import Ops, both_paths, selection
from pallas_kernels.power_attention.xla import power_attention
from pallas_kernels.selected_attention.xla import selected_attention

_OPS = Ops(block_selection, selected_attention, power_attention)


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
    if causal and xla_band.serves(positions.shape[1], max_history):
        slots, probability = selection(
            block_selection,
            q,
            summary_keys,
            positions,
            selection_gradient,
            block_size=block_size,
            num_selected=num_selected,
            causal=causal,
            mask_own_block=mask_own_block,
        )
        return xla_band.band_attention(
            q,
            k,
            v,
            gate,
            slots,
            probability,
            positions,
            block_size=block_size,
            window=window,
            selection_gradient=selection_gradient,
            max_history=max_history,
        )
    return both_paths(
        _OPS,
        q,
        k,
        v,
        summary_keys,
        gate,
        positions,
        block_size=block_size,
        num_selected=num_selected,
        window=window,
        causal=causal,
        mask_own_block=mask_own_block,
        selection_gradient=selection_gradient,
        max_history=max_history,
    )
