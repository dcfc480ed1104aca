"""The public function of the whole attention."""

import functools
from collections.abc import Callable

from jaxtyping import Array, Float, Int

from pallas_kernels import checks, dispatch, triton_limits
from pallas_kernels.blossom_attention import reference, triton, xla

IMPLEMENTATIONS: dict[str, Callable] = {
    "reference": reference.blossom_attention,
    "xla": xla.blossom_attention,
    "triton": triton.blossom_attention,
    "triton_interpret": functools.partial(triton.blossom_attention, interpret=True),
}


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
    causal: bool = True,
    mask_own_block: bool = False,
    selection_gradient: str = "none",
    max_history: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "B L H D"]:
    """Adds the long-term and the short-term path, each weighted by its gate (arXiv 2512.13368).

    Time and memory grow with L * (num_selected * block_size + window), but for the selection's
    scores, which are streamed: their time grows with L * L / block_size, their memory does not. In
    XLA, short histories are attended as dense bands, with L times at most 128 keys.

    It can be jitted, mapped by `jax.vmap`, and differentiated in reverse. Over several devices
    call it in `jax.shard_map` with rows split and `check_vma=False`, as `blossom_jax.sharding`
    does: for kernels under `jit` alone each device would gather all rows.

    Args:
      q: queries, rotated.
      k: keys, rotated; query head h reads key/value head h // (H/G).
      v: values.
      summary_keys: one key a block, by slot: [B, ceil(L / block_size), G, D].
      gate: after the sigmoid, (long-term, short-term) on the last axis. The kernels' gradients take
        a gate below 2**-60 for that.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      block_size: S, tokens in a block.
      num_selected: N, blocks selected for each query.
      window: W, most recent tokens on the short-term path.
      causal: whether a query sees only its past.
      mask_own_block: leaves the query's own block out of the selection when not causal.
      selection_gradient: "none" or "straight_through", see `selected_attention`.
      max_history: static promise that positions stay below it (default L). It bounds the
        short-term distances; in XLA, causal, bands of twice as many keys may take the place of the
        selected blocks, so a history that breaks it loses keys on either path.
      implementation: "reference", "xla", "triton", "triton_interpret" (its kernels, run operation
        by operation on any device), or None for the fastest here.

    Returns:
      [B, L, H, D] in q's dtype; zero at padding, as are all input gradients there.

    Raises:
      ValueError: shapes, dtypes or sizes that do not fit together.
      NotImplementedError: the named implementation cannot serve this call.
    """
    checks.check_qkv(q, k, v, positions)
    checks.check_at_least_one(block_size=block_size, num_selected=num_selected, window=window)
    checks.check_summary_keys(q, summary_keys, block_size)
    checks.check_selection_gradient(selection_gradient)
    if summary_keys.shape[2] != k.shape[2]:
        raise ValueError(f"summary_keys have {summary_keys.shape[2]} heads, k has {k.shape[2]}")
    if gate.shape != (*q.shape[:3], 2):
        raise ValueError(f"gate must be [B, L, H, 2] = {(*q.shape[:3], 2)}, got {gate.shape}")
    max_history = checks.check_max_history(max_history, q.shape[1])
    num_selected = min(num_selected, summary_keys.shape[1])  # a query selects a block once
    refusal = triton_limits.refusal(
        q,
        k.shape[2],
        causal=causal,
        block_size=block_size,
        window=window,
        num_selected=num_selected,
        summary_keys=summary_keys,
    )
    name = dispatch.choose(
        "blossom_attention",
        implementation,
        refusal=refusal,
        max_history=max_history,
        shared_memory=triton_limits.shared_memory(q, block_size),
    )
    if selection_gradient != "none":
        summary_keys = checks.without_incomplete_blocks(positions, summary_keys, block_size)
    if dispatch.needs_clean_padding(name):
        q, k, v, gate = checks.without_padding(positions, q, k, v, gate)
    return IMPLEMENTATIONS[name](
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
