"""The public function that attends selected blocks."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import checks, dispatch, triton_limits
from pallas_kernels.selected_attention import reference, triton, xla

IMPLEMENTATIONS: dict[str, Callable] = {
    "reference": reference.selected_attention,
    "xla": xla.selected_attention,
    "triton": triton.selected_attention,
    "triton_interpret": functools.partial(triton.selected_attention, interpret=True),
}


def selected_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    slots: Int[Array, "B L G N"],
    probability: Float[Array, "B L G N"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    causal: bool = True,
    selection_gradient: str = "none",
    implementation: str | None = None,
) -> Float[Array, "B L H D"]:
    """Attends each query's own block up to itself and its selected blocks (LTIS).

    When not causal, the incomplete block at the sequence's end takes the own block's place.
    Source: arXiv 2512.13368.

    Args:
      q: queries, rotated; the logits are scaled by D**-0.5 here.
      k: keys, rotated; query head h reads key/value head h // (H/G).
      v: values.
      slots: selected blocks of each query and key/value head, -1 for none, each at most once and,
        if causal, whole and before the query's own, as `block_selection` gives them; at padding
        whatever they are.
      probability: their probability, used by "straight_through" alone.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      block_size: S, tokens in a block.
      causal: whether a query sees only its past.
      selection_gradient: "none", or "straight_through": the logits of block n are multiplied by
        1 + P_n - stop_gradient(P_n), which changes no value and gives P_n a gradient.
      implementation: "reference", "xla", "triton", "triton_interpret" (its kernels, run operation
        by operation on any device), or None for the fastest here.

    Returns:
      [B, L, H, D] in q's dtype; zero at padding, as are all input gradients there.

    Raises:
      ValueError: shapes, dtypes or sizes that do not fit together.
      NotImplementedError: the named implementation cannot serve this call.
    """
    checks.check_qkv(q, k, v, positions)
    checks.check_at_least_one(block_size=block_size)
    checks.check_slots(q, k.shape[2], slots, probability)
    checks.check_selection_gradient(selection_gradient)
    refusal = triton_limits.refusal(
        q, k.shape[2], causal=causal, block_size=block_size, num_selected=slots.shape[-1]
    )
    shared_memory = triton_limits.shared_memory(q, block_size)
    name = dispatch.choose(
        "selected_attention", implementation, refusal=refusal, shared_memory=shared_memory
    )
    slots = jnp.where((positions >= 0)[..., None, None], slots, -1)
    if dispatch.needs_clean_padding(name):
        q, k, v = checks.without_padding(positions, q, k, v)
    return IMPLEMENTATIONS[name](
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
