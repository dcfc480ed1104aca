"""Selected attention as its definition: the selected blocks as a mask over all pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.masked_softmax import at_least_f32, attend
from pallas_kernels.positions import blocks


def selected_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    slots: Int[Array, "B L G N"],
    probability: Float[Array, "B L G N"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    causal: bool,
    selection_gradient: str,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.selected_attention`."""
    row = blocks(positions, block_size=block_size, causal=causal)
    key = jnp.arange(q.shape[1], dtype=jnp.int32)
    begin = (slots * block_size + row.offset[:, :, None, None])[..., None]
    inside = (slots >= 0)[..., None] & (key >= begin) & (key < begin + block_size)  # B L G N J
    local_begin = row.local_begin[..., None]
    local = (key >= local_begin) & (key < local_begin + row.local_size[..., None])
    allowed = (inside.any(3) | local[:, :, None]).swapaxes(1, 2)
    factor = None
    if selection_gradient == "straight_through":
        carried = at_least_f32(probability) - jax.lax.stop_gradient(at_least_f32(probability))
        factor = 1 + jnp.einsum("blgn,blgnj->bglj", carried, inside.astype(carried.dtype))
    return attend(q, k, v, allowed, factor)
