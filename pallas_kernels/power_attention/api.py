"""The public function of the short-term path."""

import functools
from collections.abc import Callable

from jaxtyping import Array, Float, Int

from pallas_kernels import checks, dispatch, triton_limits
from pallas_kernels.power_attention import reference, triton, xla

IMPLEMENTATIONS: dict[str, Callable] = {
    "reference": reference.power_attention,
    "xla": xla.power_attention,
    "triton": triton.power_attention,
    "triton_interpret": functools.partial(triton.power_attention, interpret=True),
}


def power_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    *,
    window: int,
    causal: bool = True,
    max_history: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "B L H D"]:
    """Attends the last `window` tokens and those a power of two back (STIS, arXiv 2512.13368).

    A query at position p attends the keys of its own sequence at distance d with 0 <= d <= p and
    d < window or d a power of two: at most window + log2(L / window) keys. When not causal, it
    attends |d| < window, positive powers of two, and the sequence's last token.

    Args:
      q: queries, rotated; the logits are scaled by D**-0.5 here.
      k: keys, rotated; query head h reads key/value head h // (H/G).
      v: values.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      window: number of most recent tokens attended, the query's own included.
      causal: whether a query sees only its past.
      max_history: static promise that positions stay below it; it bounds the distances looked at.
      implementation: "reference", "xla", "triton", "triton_interpret" (its kernels, run operation
        by operation on any device), or None for the fastest here.

    Returns:
      [B, L, H, D] in q's dtype; zero at padding, as are all input gradients there.

    Raises:
      ValueError: shapes, dtypes or sizes that do not fit together.
      NotImplementedError: the named implementation cannot serve this call.
    """
    checks.check_qkv(q, k, v, positions)
    checks.check_at_least_one(window=window)
    max_history = checks.check_max_history(max_history, q.shape[1])
    refusal = triton_limits.refusal(q, k.shape[2], causal=causal, window=window)
    name = dispatch.choose("power_attention", implementation, refusal=refusal)
    if dispatch.needs_clean_padding(name):
        q, k, v = checks.without_padding(positions, q, k, v)
    return IMPLEMENTATIONS[name](
        q, k, v, positions, window=window, causal=causal, max_history=max_history
    )
