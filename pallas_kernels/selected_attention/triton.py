"""Selected attention by Triton kernels: the selected blocks, then the query's own block."""

from jaxtyping import Array, Float, Int

from pallas_kernels.triton_paths import Paths, attend


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
    interpret: bool = False,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.selected_attention`."""
    del causal
    trains = selection_gradient != "none"
    paths = Paths(
        block_size=block_size, max_history=q.shape[1], with_factor=trains, interpret=interpret
    )
    return attend(q, k, v, slots, probability if trains else None, None, positions, paths)
