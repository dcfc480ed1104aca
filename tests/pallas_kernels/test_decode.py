"""What a new token selects from a ring whose oldest block has been replaced."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels import decode

# The token at position 11 is in block 5; blocks 3 (slot 3) and 4 (slot 0) may be chosen.
NEW = decode.Token(jnp.zeros((1, 1, 1, 2)), jnp.array([11]), jnp.array([6]))


def select(slots, num_selected):
    """Selects by the scores of the ring's four slots."""
    keys = jnp.asarray(slots, jnp.float32)[None, None, :, None]
    q = jnp.ones((1, 1, 2, 1))
    found = decode.block_selection(q, keys, NEW, block_size=2, num_selected=num_selected)
    return found[0, 0].tolist()


def test_ties_go_to_the_earlier_block_wherever_it_lies_in_the_ring():
    assert select([1, 9, 9, 1], 1) == [3]
    assert select([1, 9, 9, 1], 2) == [3, 4]
    assert select([2, 9, 9, 1], 1) == [4]


def test_what_has_left_and_the_own_block_are_never_selected():
    assert select([1, 9, 9, 1], 5) == [3, 4, -1, -1, -1]


def test_improbable_blocks_are_dropped():
    assert select([30, 0, 0, 8], 2) == [4, 3]  # exp(-22) is 2.8e-10
    assert select([30, 0, 0, 6], 2) == [4, -1]  # exp(-24) is 3.8e-11
    assert select([-1040, 0, 0, -1050], 2) == [-1, -1]  # against the logit of "no block"


def test_reads_see_the_new_token_before_it_is_written():
    ring = jnp.arange(8.0).reshape(1, 1, 8, 1) * jnp.ones(2)  # position j of value j, up to 7
    new = decode.Token(jnp.full((1, 1, 1, 2), 100.0), jnp.array([9]), jnp.array([4]))
    for position in (8, 9):
        ring = decode.write(ring, jnp.full((1, 1, 1, 2), float(position)), jnp.array([position]))
    np.testing.assert_array_equal(ring[0, 0, :, 0], [8, 9, 2, 3, 4, 5, 6, 7])
    last = decode.last_keys(ring, new, 7)[0, 0, :, 0]
    np.testing.assert_array_equal(last, [0, 4, 5, 6, 7, 8, 100])
