"""Gradients of the keys near a query: the short-term path, and the long-term path's own block.

Two kernels, neither of which adds to memory that another program writes: `near_queries`, in
triton_backward_queries.py, walks the queries and finds their gradient; `near_keys`, in
triton_backward_keys.py, walks the keys and finds theirs. Here is what both read.

A path's weight, gate included, is exp2(logit - log_total), and the gradient of a logit is
weight * (d_out . value - mean), with `mean` the product of d_out and the path's own output. So both
paths, gated or not, are one sum.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels.triton_tools import NOTHING, read


class PathTotals(NamedTuple):
    """What the backward pass needs of a path, [B * L * H] each.

    Attributes:
      log_total: f32, log-sum-exp of the logits less the gate's logarithm, as a power of two;
        `NOTHING` where there is no key.
      mean: d_out times the path's output, summed over the head; None where it is yet to be found.
    """

    log_total: Any
    mean: Any


class Inputs(NamedTuple):
    """Arrays of the kernels.

    Attributes:
      q: [B * L * H, D].
      k: [B * L * G, D].
      v: [B * L * G, D].
      d_out: [B * L * H, D].
      positions: int32[B * L].
      totals: `PathTotals` by path.
      parts: gradients of the selected blocks to add. For queries [pairs * R, D], with the slots;
        for keys and values [B * G * slots * 2 * S, D] by slot, see `block_row`. None without any.
    """

    q: Any
    k: Any
    v: Any
    d_out: Any
    positions: Any
    totals: dict[str, PathTotals]
    parts: Any


class Queries(NamedTuple):
    """A tile of query heads: q and d_out [rows, D], and `PathTotals` [rows] by path."""

    q: Any
    d_out: Any
    totals: dict[str, PathTotals]


def read_mean(totals: PathTotals, row, real):
    """Reads what was found of the mean, if it was."""
    if totals.mean is None:
        return None
    return read(totals.mean, row, real).astype(jnp.float32)


def read_queries(x: Inputs, row, real, paths) -> Queries:
    """Reads a tile of query heads; 0 and `NOTHING` where they are not real."""
    totals = {
        name: PathTotals(
            read(x.totals[name].log_total, row, real, other=NOTHING),
            read_mean(x.totals[name], row, real),
        )
        for name in paths
    }
    q, d_out = (read(ref, row, real, columns=x.q.shape[1]) for ref in (x.q, x.d_out))
    return Queries(q, d_out, totals)
