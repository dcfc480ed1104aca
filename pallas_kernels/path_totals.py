"""What the backward kernels of either path know of it: two numbers for each query head.

A path's weight, gate included, is exp2(logit - log_total), and the gradient of a logit is
weight * (d_out . value - delta), with `delta` the product of d_out and the path's own output, as in
FlashAttention. So both paths, gated or not, are one sum.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels.triton_tools import read


class PathTotals(NamedTuple):
    """What the backward pass needs of a path, [B * L * H] each.

    Attributes:
      log_total: f32, log-sum-exp of the logits less the gate's logarithm, as a power of two;
        `NOTHING` where there is no key.
      delta: d_out times the path's output, summed over the head; None where it is yet to be found.
    """

    log_total: Any
    delta: Any


def read_delta(totals: PathTotals, row, real):
    """Reads what was found of delta, if it was."""
    if totals.delta is None:
        return None
    return read(totals.delta, row, real).astype(jnp.float32)
