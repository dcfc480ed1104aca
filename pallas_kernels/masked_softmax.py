"""Exact products, finite masking and dense attention: what references and XLA paths share."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# f32 products stay f32 where a GPU would round their inputs to 10 bits, and flip selections by it.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

MASKED = -1e30  # a finite logit for what is not attended: exp(MASKED - anything) is exactly 0


def at_least_f32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Widens bf16 and f16 to f32; f32 and f64 stay as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_softmax(logits: Float[Array, "*A J"], allowed: Bool[Array, "*#A J"]):
    """Normalises over the allowed entries of the last axis; zero where nothing is allowed."""
    logits = jnp.where(allowed, logits, MASKED)
    highest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weight = jnp.where(allowed, jnp.exp(logits - highest), 0)
    total = weight.sum(-1, keepdims=True)
    return weight / jnp.where(total > 0, total, 1)


def attend(
    q: Float[Array, "B I H D"],
    k: Float[Array, "B J G D"],
    v: Float[Array, "B J G D"],
    allowed: Bool[Array, "B #G I J"],
    factor: Float[Array, "B G I J"] | None = None,
) -> Float[Array, "B I H D"]:
    """Attends densely under a mask, in f32 or wider at the highest matmul precision.

    Args:
      q: queries; head h reads key/value head h // (H/G).
      k: keys.
      v: values.
      allowed: the pairs that may attend; a query with none gets zero.
      factor: multiplies the logits, shared by the heads of a group.
    """
    b, i, h, d = q.shape
    g = k.shape[2]
    queries = at_least_f32(q).reshape(b, i, g, h // g, d)
    logits = d**-0.5 * einsum("bigrd,bjgd->bgrij", queries, at_least_f32(k))
    if factor is not None:
        logits = logits * factor[:, :, None]
    weight = masked_softmax(logits, jnp.broadcast_to(allowed[:, :, None], logits.shape))
    out = einsum("bgrij,bjgd->bigrd", weight, at_least_f32(v))
    return out.reshape(b, i, h, d).astype(q.dtype)
