"""A softmax of tokens over the items of a catalogue, of which no logit reaches memory.

What the cross-entropy and its gradients need of it: each token's log-sum-exp, the mean embedding of
the items under its probabilities, and the sum over the tokens of their hidden states, weighted with
an item's probabilities. Each forms the logits anew, tile by tile, and so takes no memory that grows
with tokens times items (https://arxiv.org/abs/2411.09009). No program adds to what another writes:
repeats are equal to the bit.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.item_softmax.triton import (
    Operand,
    launch_for_rows,
    log_sum_exp_kernel,
    weighted_kernel,
)
from pallas_kernels.triton_tools import pad_head, padded_head

LARGEST_HIDDEN = 256


def refusal(hidden: jax.Array, items: jax.Array) -> str | None:
    """Says why the kernels do not serve these arrays; None if they do."""
    if hidden.dtype != jnp.bfloat16:
        return f"the kernels of the loss are for bfloat16, the hidden states are {hidden.dtype}"
    if hidden.shape[1] > LARGEST_HIDDEN:
        return f"hidden size {hidden.shape[1]} is above {LARGEST_HIDDEN}"
    if max(hidden.shape[0], items.shape[0]) * padded_head(hidden.shape[1]) >= 2**31:
        return f"tokens or items times the hidden size is 2**31 or more: {items.shape=}"
    return None


def log_sum_exp(
    hidden: Float[Array, "T M"],
    items: Float[Array, "R M"],
    item_bounds: Int[Array, "2"],
    count: Int[Array, ""],
    *,
    interpret: bool = False,
) -> Float[Array, "T"]:
    """Finds log sum exp(hidden . item) over the items, for the first tokens.

    Args:
      hidden: bf16; M up to 256.
      items: their embeddings, of the same dtype.
      item_bounds: int32, from the first row that is an item to before the second.
      count: int32, tokens that matter.
      interpret: runs the kernel operation by operation on any device, for tests.

    Returns:
      f32, natural; about -1e30 where there is no item; what stands for the other tokens means
      nothing.
    """
    tokens, others = _operands(hidden, items, item_bounds, count)
    parts = launch_for_rows("log_sum_exp", log_sum_exp_kernel, tokens, others, (), interpret)
    return jax.nn.logsumexp(parts, axis=0)


def mean_embedding(
    hidden: Float[Array, "T M"],
    items: Float[Array, "R M"],
    item_bounds: Int[Array, "2"],
    count: Int[Array, ""],
    log_total: Float[Array, "T"],
    *,
    interpret: bool = False,
) -> Float[Array, "T M"]:
    """Sums the items' embeddings, weighted with the probabilities that a token gives them.

    Args:
      hidden: as of `log_sum_exp`, like those that follow.
      items: likewise.
      item_bounds: likewise.
      count: likewise.
      log_total: log-sum-exp over all items, on whatever devices they are.
      interpret: likewise.

    Returns:
      f32; 0 for tokens that do not matter.
    """
    tokens, others = _operands(hidden, items, item_bounds, count, log_total)
    return _weighted("mean_embedding", tokens, others, hidden.shape, interpret)


def weighted_hidden(
    hidden: Float[Array, "T M"],
    items: Float[Array, "R M"],
    item_bounds: Int[Array, "2"],
    count: Int[Array, ""],
    log_total: Float[Array, "T"],
    *,
    interpret: bool = False,
) -> Float[Array, "R M"]:
    """Sums the tokens' hidden states, weighted with the probabilities that they give an item.

    Args and result as of `mean_embedding`, for each item in place of each token.
    """
    tokens, others = _operands(hidden, items, item_bounds, count, log_total)
    return _weighted("weighted_hidden", others, tokens, items.shape, interpret)


def _operands(hidden, items, item_bounds, count, log_total=None) -> tuple[Operand, Operand]:
    token_bounds = jnp.stack([jnp.zeros_like(count), count])
    return (
        Operand(pad_head(hidden), token_bounds, log_total),
        Operand(pad_head(items), item_bounds),
    )


def _weighted(name: str, own: Operand, other: Operand, shape, interpret: bool):
    parts = launch_for_rows(name, weighted_kernel, own, other, own.rows.shape[1:], interpret)
    return parts.sum(0)[:, : shape[1]]
