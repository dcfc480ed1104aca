"""How the ops of the two paths make one attention, whatever implements them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.masked_softmax import at_least_f32


class Ops(NamedTuple):
    """One implementation of each op."""

    block_selection: Callable
    selected_attention: Callable
    power_attention: Callable


def both_paths(
    ops: Ops,
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
    """Runs one path after the other, and adds them by the gate; see `blossom_attention`."""
    slots, probability = selection(
        ops.block_selection,
        q,
        summary_keys,
        positions,
        selection_gradient,
        block_size=block_size,
        num_selected=num_selected,
        causal=causal,
        mask_own_block=mask_own_block,
    )
    long_term = ops.selected_attention(
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
    short_term = ops.power_attention(
        q, k, v, positions, window=window, causal=causal, max_history=max_history
    )
    return add_by_gate(gate, long_term, short_term)


def selection(
    select: Callable,
    q: Float[Array, "B L H D"],
    summary_keys: Float[Array, "B slots G D"],
    positions: Int[Array, "B L"],
    selection_gradient: str,
    **sizes: Any,
) -> tuple[Int[Array, "B L G N"], Float[Array, "B L G N"]]:
    """Selects blocks, with a gradient only where one is asked for.

    Args:
      select: an implementation of `block_selection`.
      q: queries, rotated.
      summary_keys: one key a block.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      selection_gradient: see `blossom_attention`.
      **sizes: of `block_selection`.

    Returns:
      Slots and probabilities, see `block_selection`.
    """
    trains = selection_gradient != "none"
    scored = (q, summary_keys) if trains else jax.lax.stop_gradient((q, summary_keys))
    return select(*scored, positions, **sizes)


def add_by_gate(
    gate: Float[Array, "B L H 2"],
    long_term: Float[Array, "B L H D"],
    short_term: Float[Array, "B L H D"],
) -> Float[Array, "B L H D"]:
    """Weighs each path by its gate, in f32 or wider."""
    gate = at_least_f32(gate)
    out = gate[..., :1] * at_least_f32(long_term) + gate[..., 1:] * at_least_f32(short_term)
    return out.astype(long_term.dtype)
