"""What the kernel of near keys is made of: the words of its masks, and columns taken apart."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.power_attention.attended import attending
from pallas_kernels.power_attention.config import NearTiles
from pallas_kernels.power_attention.head_reads import HeadReads
from pallas_kernels.power_attention.near import NearSizes
from pallas_kernels.power_attention.triton_backward_shifts import _columns, _joined
from pallas_kernels.triton_tools import LEAST_TILE, Heads

LENGTH = 96


def wanted(position, distance, path, block_size, window):
    """Says whether a query attends the key so many tokens before it, by definition."""
    if not 0 <= distance <= position:
        return False
    if path == "long":
        return distance <= position % block_size
    return distance < window or not distance & (distance - 1)


@pytest.mark.parametrize("block_size, window", [(16, 8), (8, 1), (64, 20), (16, 0), (0, 40)])
def test_words_have_a_bit_for_each_key_that_is_attended(block_size, window):
    heads = Heads(LENGTH, 1, 2)
    sizes = NearSizes(
        heads, block_size, window, LENGTH, 0, 1.0, NearTiles(32, 1), least_tokens=LEAST_TILE
    )
    positions = np.concatenate([np.arange(50), [-1], np.arange(LENGTH - 51)])
    for first in (0, 16, 48):
        for step in range(1 + sizes.behind // LEAST_TILE):
            token = np.arange(first + step * LEAST_TILE, first + (step + 1) * LEAST_TILE)
            token = token[token < LENGTH]
            position = positions[token]
            words = attending(jnp.asarray(position), jnp.arange(len(token)), jnp.int32(step), sizes)
            bits = (np.asarray(words)[:, None] >> np.arange(2 * LEAST_TILE)) & 1
            for n, path in enumerate(sizes.paths):
                for row, (t, p) in enumerate(zip(token, position, strict=True)):
                    expected = [
                        wanted(p, t - key, path, block_size, window)
                        for key in range(first, first + LEAST_TILE)
                    ]
                    found = bits[row, n * LEAST_TILE : (n + 1) * LEAST_TILE]
                    np.testing.assert_array_equal(found, expected, err_msg=f"{path} {t} {step}")


@pytest.mark.parametrize(("dtype", "count"), [("bfloat16", 8), ("float32", 4)])
@pytest.mark.parametrize("columns", [16, 64])
def test_columns_are_put_together_as_they_were_taken_apart(columns, dtype, count):
    x = jnp.arange(2 * columns, dtype=dtype).reshape(2, columns)
    pieces = _columns(x, interpret=True)
    assert [piece.shape for piece in pieces] == [(2, columns // count)] * count
    np.testing.assert_array_equal(_joined(pieces), x.astype(jnp.float32))


@pytest.mark.parametrize(
    ("row_bytes", "of_step"), [(32, 4), (64, 4), (128, 4), (256, 2), (1024, 1)]
)
def test_a_step_reads_no_more_than_registers_are_there_for(row_bytes, of_step):
    assert HeadReads(8, row_bytes).of_step == of_step
