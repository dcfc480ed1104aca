"""Power attention as its definition: a mask and a softmax, all pairs at once."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.masked_softmax import attend
from pallas_kernels.positions import sequence_end, sequence_start, valid_tokens


def power_mask(positions: Int[Array, "B L"], *, window: int, causal: bool) -> Bool[Array, "B L L"]:
    """Marks the allowed pairs (query i, key j): near, or a power of two back, in one sequence."""
    index = jnp.arange(positions.shape[1], dtype=jnp.int32)
    start, end = sequence_start(positions)[:, :, None], sequence_end(positions)[:, :, None]
    key = index[None, None, :]
    distance = index[:, None] - index[None, :]
    allowed = (jnp.abs(distance) < window) | ((distance > 0) & (distance & (distance - 1) == 0))
    if causal:
        allowed &= distance >= 0
    else:
        allowed = allowed | (key == end - 1)
    return allowed & (key >= start) & (key < end) & valid_tokens(positions)[:, :, None]


def power_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    *,
    window: int,
    causal: bool,
    max_history: int,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.power_attention`; `max_history` promises, and needs nothing here."""
    del max_history
    mask = power_mask(positions, window=window, causal=causal)
    return attend(q, k, v, mask[:, None])
