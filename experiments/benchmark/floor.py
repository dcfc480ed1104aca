"""Counts what any program must do: bytes that must move, exponentials that must be computed.

Attention with heads of 16 does little arithmetic for each exponential and each byte, so these two
bound it, and

    floor seconds = bytes / measured copy rate + exponentials / measured rate

Bytes. Forward reads each input once and writes the output once. Backward reads each input and the
output's gradient once, and writes each gradient once. What forward saves for backward is not
counted: a program may recompute it. Forward and backward together are their sum.

Exponentials of Blossom, for each token and direction, in the letters of `pallas_kernels`:

    H * (N * S + S / 2 + W + log2(L / W))

N selected blocks, half of the own block on average, the window, and the powers of two beyond it.
Nothing sees more than its past, so N * S + S / 2 counts at most L / 2. The backward pass needs each
weight again. The selection chooses by scores, which takes no exponential. The log-sum-exp over all
L / (2 * S) earlier blocks, for each of G heads, decides only where a chosen score lies 23 below the
maximum, so it is counted, G * L / (2 * S) for each direction, only where the selection has a
gradient and cannot do without.

Exponentials of dense causal attention: H * L / 2 for each token and direction.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax

from experiments.benchmark.machine import Ceilings
from experiments.benchmark.sizes import Sizes


def blossom_exponentials(sizes: Sizes) -> float:
    """Returns the exponentials of one direction, over all tokens."""
    length, block = sizes.length, sizes.block_size
    long_term = min(sizes.num_selected * block + block / 2, length / 2)
    window = min(sizes.window, length)
    short_term = window + math.log2(length / window)
    selection = 0.0
    if sizes.selection_gradient != "none":
        selection = sizes.kv_heads * length / (2 * block)
    return sizes.tokens * (sizes.heads * (long_term + short_term) + selection)


def dense_exponentials(sizes: Sizes) -> float:
    """Returns the exponentials of one direction, over all tokens."""
    return sizes.tokens * sizes.heads * sizes.length / 2


def moved_bytes(inputs: Any, out: Any, gradients: Any = None) -> int:
    """Returns the bytes of forward, or of forward and backward where there are gradients.

    Args:
      inputs: Arrays or ShapeDtypeStructs that are read.
      out: The output; its gradient is as large.
      gradients: What backward writes.
    """
    forward = _bytes(inputs) + _bytes(out)
    if gradients is None:
        return forward
    return forward + _bytes(inputs) + _bytes(out) + _bytes(gradients)


def _bytes(tree: Any) -> int:
    leaves: Iterable[Any] = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def floor_seconds(bytes_moved: int, exponentials: float, ceilings: Ceilings) -> float:
    """Returns the least time for both, one after the other."""
    by_bytes = bytes_moved / ceilings.bytes_per_second
    return by_bytes + exponentials / ceilings.exponentials_per_second
