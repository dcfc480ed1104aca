"""Blossom attention by Triton kernels: the selection, then both paths and the gate at once."""

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.block_selection.triton import block_selection
from pallas_kernels.triton_paths import Paths, attend


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
    interpret: bool = False,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.blossom_attention`."""
    trains = selection_gradient != "none"
    scored = (q, summary_keys) if trains else jax.lax.stop_gradient((q, summary_keys))
    slots, probability = block_selection(
        *scored,
        positions,
        block_size=block_size,
        num_selected=num_selected,
        causal=causal,
        mask_own_block=mask_own_block,
        with_probability=trains,
        interpret=interpret,
    )
    paths = Paths(block_size, window, max_history, trains, interpret)
    return attend(q, k, v, slots, probability, gate, positions, paths)
