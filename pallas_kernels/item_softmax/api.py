"""A softmax of tokens over the items of a catalogue, of which no logit reaches memory.

What the cross-entropy and its gradients need of it: each token's log-sum-exp and the mean embedding
of the items under its probabilities, in one go, as flash attention finds them
(https://arxiv.org/abs/2205.14135); then the sum over the tokens of their hidden states, weighted
with an item's probabilities. Both form the logits tile by tile, and so take no memory that grows
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


def mean_embedding(
    logits: Logits, *, interpret: bool = False
) -> tuple[Float[Array, "T M"], Float[Array, "T"]]:
    """Finds the mean embedding of the items under the probabilities that a token gives them.

    Args:
      logits: of which tokens and items.
      interpret: runs the kernel operation by operation on any device, for tests.

    Returns:
      The means, f32, 0 where there is no item; and log sum exp(hidden . item) over the items, f32,
      natural, about -1e30 where there is none. What stands for tokens that do not matter means
      nothing.

    Raises:
      ValueError: the dtypes differ.
    """
    tokens, items = _operands(logits, None)
    shapes = {"log_total": (), "mean": tokens.rows.shape[1:]}
    found = launch_for_rows("mean_embedding", tokens, items, shapes, interpret)
    log_total = jax.nn.logsumexp(found["log_total"], axis=0)
    weights = jax.nn.softmax(found["log_total"], axis=0)[..., None]
    return _trim((found["mean"] * weights).sum(0), logits.hidden), log_total


def weighted_hidden(
    logits: Logits, log_total: Float[Array, "T"], *, interpret: bool = False
) -> Float[Array, "V M"]:
    """Sums the tokens' hidden states, weighted with the probabilities that they give an item.

    Args:
      logits: of which tokens and items.
      log_total: log-sum-exp over all items, on whatever devices they are.
      interpret: as of `mean_embedding`.

    Returns:
      f32; 0 for rows of the table that are no items.

    Raises:
      ValueError: the dtypes differ.
    """
    tokens, items = _operands(logits, log_total)
    shapes = {"sum": items.rows.shape[1:]}
    found = launch_for_rows("weighted_hidden", items, tokens, shapes, interpret)
    return _trim(found["sum"].sum(0), logits.items)


def _operands(logits: Logits, log_total) -> tuple[Operand, Operand]:
    hidden, items, item_bounds, num_tokens = logits
    if hidden.dtype != items.dtype:
        raise ValueError(f"hidden and items must share a dtype, got {hidden.dtype=} {items.dtype=}")
    token_bounds = jnp.stack([jnp.zeros_like(num_tokens), num_tokens])
    return (
        Operand(pad_head(hidden), token_bounds, log_total),
        Operand(pad_head(items), item_bounds),
    )


def _trim(padded, like):
    return padded[:, : like.shape[1]]
