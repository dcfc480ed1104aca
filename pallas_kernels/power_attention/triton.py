"""Power attention by Triton kernels: those of near keys, for the short-term path alone."""

from jaxtyping import Array, Float, Int

from pallas_kernels.triton_paths import Paths, attend


def power_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    *,
    window: int,
    causal: bool,
    max_history: int,
    interpret: bool = False,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.power_attention`."""
    del causal
    paths = Paths(window=window, max_history=max_history, interpret=interpret)
    return attend(q, k, v, None, None, None, positions, paths)
