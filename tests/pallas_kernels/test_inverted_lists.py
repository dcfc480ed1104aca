"""The selection turned around: every pair stands once, in its block's list, in order."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.selected_attention.inverted_lists import invert

BATCH, LENGTH, KV_HEADS, BLOCK = 2, 290, 2, 8  # more lists than one program searches
NUM_SLOTS = -(-LENGTH // BLOCK)


@pytest.mark.parametrize("chosen", [0.0, 0.5, 1.0])
def test_lists_hold_the_pairs_of_each_block(chosen):
    rng = np.random.default_rng(0)
    slots = rng.integers(0, NUM_SLOTS, (BATCH, LENGTH, KV_HEADS, 3)).astype(np.int32)
    slots[slots == 4] = 5  # a block that nobody selects
    slots[rng.random(slots.shape) >= chosen] = -1
    positions = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (BATCH, 1))
    pairs, begins, _ = invert(jnp.asarray(slots), positions, BLOCK, interpret=True)
    assert begins.shape == (BATCH * KV_HEADS * NUM_SLOTS + 1,)
    assert sorted(np.asarray(pairs)) == list(range(slots.size))
    row, _, head, _ = np.unravel_index(np.arange(slots.size), slots.shape)
    block = (row * KV_HEADS + head) * NUM_SLOTS + slots.reshape(-1)
    for n, (begin, end) in enumerate(zip(begins, begins[1:], strict=False)):
        expected = np.flatnonzero((block == n) & (slots.reshape(-1) >= 0))
        np.testing.assert_array_equal(pairs[begin:end], expected)
    assert begins[-1] == np.sum(slots >= 0)
