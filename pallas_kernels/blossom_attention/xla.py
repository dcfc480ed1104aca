"""Blossom attention in plain XLA: the two streamed paths, or one dense band for short histories."""

from jaxtyping import Array, Float

from pallas_kernels.block_selection.xla import block_selection
from pallas_kernels.blossom_attention.paths import Ops, both_paths
from pallas_kernels.blossom_attention.xla_band import band_attention
from pallas_kernels.power_attention.xla import power_attention
from pallas_kernels.selected_attention.xla import selected_attention

_OPS = Ops(block_selection, selected_attention, power_attention)


def blossom_attention(
    *arrays: Array,
    block_size: int,
    num_selected: int,
    window: int,
    causal: bool,
    selection_gradient: str,
    max_history: int,
    **options,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.blossom_attention`, whose arrays these are.

    Histories of at most (num_selected + 1) * block_size events select every block, so there both
    paths are one dense band. It serves the causal form without a selection gradient.
    """
    everything = max_history <= (num_selected + 1) * block_size
    if everything and causal and selection_gradient == "none":
        return band_attention(
            *arrays, block_size=block_size, window=window, max_history=max_history
        )
    return both_paths(
        _OPS,
        *arrays,
        block_size=block_size,
        num_selected=num_selected,
        window=window,
        causal=causal,
        selection_gradient=selection_gradient,
        max_history=max_history,
        **options,
    )
