"""What follows from positions, against a walk over the tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import ROWS

from pallas_kernels.positions import slot_offset


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("block_size", [1, 4, 6, 16])
def test_a_block_begins_at_its_slot_and_offset(rows, block_size):
    positions = ROWS[rows]
    want = np.zeros((len(positions), -(-positions.shape[1] // block_size)), int)
    for b, row in enumerate(positions):
        for token, position in enumerate(row):
            block = row[token : token + block_size]
            if position >= 0 and position % block_size == 0 and len(block) == block_size:
                if (block == position + np.arange(block_size)).all():
                    want[b, token // block_size] = token % block_size
    found = slot_offset(jnp.asarray(positions), block_size=block_size)
    np.testing.assert_array_equal(found, want)
