"""The softmax of some tokens over the items that one device has: by XLA, or by Triton kernels.

Either finds the log-sum-exp of those items first, which is to be summed over devices, and then what
the gradients need of the probabilities.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blossom_jax import sharding
from blossom_jax.losses.chunks import dot
from pallas_kernels import dispatch
from pallas_kernels.item_softmax import api as item_softmax

NAMES = ("xla", "triton", "triton_interpret")


class Items(NamedTuple):
    """The rows of the table that one device has.

    Attributes:
      embeddings: Rows that are no item repeat one that is, so that they change no maximum.
      bounds: From the first row that is an item to before the second.
      is_item: Which rows are.
    """

    embeddings: Float[Array, "R M"]
    bounds: Int[Array, "2"]
    is_item: Bool[Array, "R"]


class Softmax(NamedTuple):
    """A softmax whose denominator is yet to be summed over devices.

    Attributes:
      log_total: f32[C], log-sum-exp of the logits; -inf or about -1e30 where there is no item.
      products: Takes the log-sum-exp over all devices, f32[C]. Returns the mean embedding of the
        items here under the probabilities, f32[C, M], and, for each item, the sum of the hidden
        states weighted with its probability, f32[M, R].
    """

    log_total: Float[Array, "C"]
    products: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def choose(
    implementation: str | None,
    hidden: jax.ShapeDtypeStruct | jax.Array,
    *,
    rows: int,
    mesh: jax.sharding.Mesh | None,
) -> str:
    """Returns the name of what takes the softmax.

    Args:
      implementation: One of `NAMES`, or None for kernels where the devices have them.
      hidden: [T, M], of all tokens.
      rows: Of the whole table.
      mesh: Devices that share both; None = everything is on the first of this process.

    Raises:
      ValueError: No such name.
      NotImplementedError: Kernels by name for what they do not serve.
    """
    if implementation not in (None, *NAMES):
        raise ValueError(f"{implementation=} must be None or one of {', '.join(NAMES)}")
    device, (tokens, hidden_size) = None, hidden.shape
    if mesh is not None:
        device = mesh.devices.flat[0]
        tokens //= mesh.shape[sharding.DATA]
        rows //= mesh.shape[sharding.MODEL]
    refusal = item_softmax.refusal(hidden.dtype, hidden_size, tokens=tokens, rows=rows)
    return dispatch.choose("full_cross_entropy", implementation, refusal=refusal, device=device)


def take(name: str, hidden: jax.Array, items: Items, count: jax.Array) -> Softmax:
    """Takes the softmax of [C, M] hidden states.

    Args:
      name: Of `NAMES`.
      hidden: What counts first.
      items: What the device has.
      count: int32, how many count; what is found of the others means nothing, but adds nothing to
        the items.
    """
    if name == "xla":
        return _by_xla(hidden, items)
    logits = item_softmax.Logits(hidden, items.embeddings, items.bounds, count)
    return _by_kernels(logits, interpret=name == "triton_interpret")


def _by_xla(hidden, items: Items) -> Softmax:
    """Forms the logits once: the products take them from the same exponentials, scaled."""
    logits = dot("cm,rm->cr", hidden, items.embeddings)
    shift = jnp.max(logits, axis=1, keepdims=True)
    p = jnp.exp(jnp.where(items.is_item, logits - shift, -jnp.inf))
    log_total = shift + jnp.log(jnp.sum(p, axis=1, keepdims=True))

    def products(log_total):
        # The minimum is for a device without any item: its p is 0, its shift could be anything.
        scale = jnp.exp(jnp.minimum(shift - log_total[:, None], 0))
        low = p.astype(hidden.dtype)
        weighted = (hidden * scale).astype(hidden.dtype)
        # XLA's CPU forms the transpose faster.
        return dot("cr,rm->cm", low, items.embeddings) * scale, dot("cm,cr->mr", weighted, low)

    return Softmax(log_total[:, 0], products)


def _by_kernels(logits: item_softmax.Logits, interpret: bool) -> Softmax:
    """Forms the logits once for the tokens and once for the items, and keeps none."""
    mean, log_here = item_softmax.mean_embedding(logits, interpret=interpret)

    def products(log_total):
        share = jnp.exp(log_here - log_total)[:, None]  # of the items here
        weighted = item_softmax.weighted_hidden(logits, log_total, interpret=interpret)
        return mean * share, weighted.T

    return Softmax(log_here, products)
