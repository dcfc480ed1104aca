"""Memory grows with the row, not with its square, forward and backward."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import blossom_attention

H, G, D, S = 8, 2, 16, 16


def compiled_gradient(length: int, **options):
    shapes = [(length, H, D), (length, G, D), (length, G, D), (length // S, G, D), (length, H, 2)]
    arrays = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes]
    positions = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(*args):
        return blossom_attention(
            *args, block_size=S, num_selected=4, window=8, implementation="xla", **options
        ).sum()

    return jax.jit(jax.grad(loss, argnums=range(5))).lower(*arrays, positions).compile()


@pytest.mark.parametrize("selection_gradient", ["none", "straight_through"])
def test_temporary_bytes_grow_linearly(selection_gradient):
    short, long = (
        compiled_gradient(n, selection_gradient=selection_gradient) for n in (4096, 65536)
    )
    ratio = long.memory_analysis().temp_size_in_bytes / short.memory_analysis().temp_size_in_bytes
    assert ratio <= 17


def test_no_array_of_all_pairs():
    length = 2048
    text = compiled_gradient(length, selection_gradient="straight_through").as_text()
    assert f"{length},{length}" not in text
    assert f"[1,{length},{G},{length // S}]" not in text  # the scores of a whole row
    band = compiled_gradient(length, max_history=64).as_text()
    assert f"{length},{length}" not in band
    assert f"{length // 64},{G},64,{H // G},128]" in band  # what it has instead
