"""The public function that selects blocks."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import checks, dispatch, triton_limits
from pallas_kernels.block_selection import reference, triton, xla

IMPLEMENTATIONS: dict[str, Callable] = {
    "reference": reference.block_selection,
    "xla": xla.block_selection,
    "triton": triton.block_selection,
    "triton_interpret": functools.partial(triton.block_selection, interpret=True),
}


def block_selection(
    q: Float[Array, "B L H D"],
    summary_keys: Float[Array, "B slots G D"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    num_selected: int,
    causal: bool = True,
    mask_own_block: bool = False,
    implementation: str | None = None,
) -> tuple[Int[Array, "B L G N"], Float[Array, "B L G N"]]:
    """Selects, for every query and key/value head, the N most probable earlier blocks (LTIS).

    The score of a block is the mean of the group's queries dotted with the block's summary key,
    times D**-0.5. The probability is a softmax over the candidates and one extra logit of -1000;
    blocks at or below 1e-10 are dropped. Source: arXiv 2512.13368.

    Args:
      q: queries, rotated.
      summary_keys: one key a block, by slot: [B, ceil(L / block_size), G, D].
      positions: int32, position of each token inside its own sequence, -1 at padding.
      block_size: S, tokens in a block.
      num_selected: N, blocks selected for each query.
      causal: candidates end before the query's own block; otherwise all the sequence's blocks.
      mask_own_block: leaves the query's own block out when not causal.
      implementation: "reference", "xla", "triton", "triton_interpret" (its kernels, run operation
        by operation on any device), or None for the fastest here.

    Returns:
      slots int32[B, L, G, N] by falling probability, ties to the lower slot, and their probability
      in f32; where fewer than N remain, slot -1 and probability 0. The probability carries
      gradients to q and summary_keys through the softmax over all candidates.

    Raises:
      ValueError: shapes, dtypes or sizes that do not fit together.
      NotImplementedError: the named implementation cannot serve this call.
    """
    checks.check_positions(q, positions)
    checks.check_at_least_one(block_size=block_size, num_selected=num_selected)
    checks.check_summary_keys(q, summary_keys, block_size)
    possible = min(num_selected, summary_keys.shape[1])
    refusal = triton_limits.refusal(
        q,
        summary_keys.shape[2],
        causal=causal,
        num_selected=possible,
        summary_keys=summary_keys,
    )
    name = dispatch.choose("block_selection", implementation, refusal=refusal)
    if dispatch.needs_clean_padding(name):
        (q,) = checks.without_padding(positions, q)
    summary_keys = checks.without_incomplete_blocks(positions, summary_keys, block_size)
    slots, probability = IMPLEMENTATIONS[name](
        q,
        summary_keys,
        positions,
        block_size=block_size,
        num_selected=possible,
        causal=causal,
        mask_own_block=mask_own_block,
    )
    missing = (*[(0, 0)] * 3, (0, num_selected - possible))
    return jnp.pad(slots, missing, constant_values=-1), jnp.pad(probability, missing)
