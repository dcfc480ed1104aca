"""A softmax of tokens over the items of a catalogue, of which no logit reaches memory.

What the cross-entropy and its gradients need of it: each token's log-sum-exp, the mean embedding of
the items under its probabilities, and the sum over the tokens of their hidden states, weighted with
an item's probabilities. Each forms the logits anew, tile by tile, and so takes no memory that grows
with tokens times items (https://arxiv.org/abs/2411.09009). No program adds to what another writes:
repeats are equal to the bit.

Logits are f32, so a probability is as exact as f32 holds its logit. The kernels are made for bf16;
f32 is for tests, which compare with float64 in interpret mode.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.item_softmax.kernels import (
    Operand,
    launch_for_rows,
    log_sum_exp_kernel,
    weighted_kernel,
)
from pallas_kernels.triton_limits import MOST_ELEMENTS
from pallas_kernels.triton_tools import pad_head, padded_head

LARGEST_HIDDEN = 256


def refusal(dtype: jax.typing.DTypeLike, hidden_size: int, *, tokens: int, rows: int) -> str | None:
    """Says why the kernels do not serve a call; None if they do.

    Args:
      dtype: of the hidden states.
      hidden_size: M.
      tokens: T, on one device.
      rows: V, of the table, on one device.
    """
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"the kernels of the loss are for bfloat16, the hidden states are {dtype}"
    if hidden_size > LARGEST_HIDDEN:
        return f"hidden size {hidden_size} is above {LARGEST_HIDDEN}"
    for name, count in (("tokens", tokens), ("rows of the table", rows)):
        if count * padded_head(hidden_size) > MOST_ELEMENTS:
            return f"{count} {name} of size {hidden_size} are more than {MOST_ELEMENTS} elements"
    return None


class Logits(NamedTuple):
    """Products of tokens with items, which are never formed as a whole.

    Attributes:
      hidden: what the model gives for each token.
      items: the table of embeddings, of the same dtype.
      item_bounds: int32, from the first row that is an item to before the second.
      num_tokens: int32, how many tokens matter: the first ones.
    """

    hidden: Float[Array, "T M"]
    items: Float[Array, "V M"]
    item_bounds: Int[Array, "2"]
    num_tokens: Int[Array, ""]


def log_sum_exp(logits: Logits, *, interpret: bool = False) -> Float[Array, "T"]:
    """Finds log sum exp(hidden . item) over the items.

    Args:
      logits: of which tokens and items.
      interpret: runs the kernel operation by operation on any device, for tests.

    Returns:
      f32, natural; about -1e30 where there is no item; what stands for the other tokens means
      nothing.

    Raises:
      ValueError: the dtypes differ.
    """
    tokens, items = _operands(logits, None)
    parts = launch_for_rows("log_sum_exp", log_sum_exp_kernel, tokens, items, (), interpret)
    return jax.nn.logsumexp(parts, axis=0)


def mean_embedding(
    logits: Logits, log_total: Float[Array, "T"], *, interpret: bool = False
) -> Float[Array, "T M"]:
    """Sums the items' embeddings, weighted with the probabilities that a token gives them.

    Args:
      logits: of which tokens and items.
      log_total: log-sum-exp over all items, on whatever devices they are.
      interpret: as of `log_sum_exp`.

    Returns:
      f32; 0 for tokens that do not matter.
    """
    tokens, items = _operands(logits, log_total)
    return _weighted("mean_embedding", tokens, items, logits.hidden.shape, interpret)


def weighted_hidden(
    logits: Logits, log_total: Float[Array, "T"], *, interpret: bool = False
) -> Float[Array, "V M"]:
    """Sums the tokens' hidden states, weighted with the probabilities that they give an item.

    Args and result as of `mean_embedding`, for each row of the table in place of each token.
    """
    tokens, items = _operands(logits, log_total)
    return _weighted("weighted_hidden", items, tokens, logits.items.shape, interpret)


def _operands(logits: Logits, log_total) -> tuple[Operand, Operand]:
    hidden, items, item_bounds, num_tokens = logits
    if hidden.dtype != items.dtype:
        raise ValueError(f"hidden and items must share a dtype, got {hidden.dtype=} {items.dtype=}")
    token_bounds = jnp.stack([jnp.zeros_like(num_tokens), num_tokens])
    return (
        Operand(pad_head(hidden), token_bounds, log_total),
        Operand(pad_head(items), item_bounds),
    )


def _weighted(name: str, own: Operand, other: Operand, shape, interpret: bool):
    parts = launch_for_rows(name, weighted_kernel, own, other, own.rows.shape[1:], interpret)
    return parts.sum(0)[:, : shape[1]]
