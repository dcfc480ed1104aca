"""The selection turned around: every pair stands once, in its block's list, in order."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.selected_attention.inverted_lists import find_run, invert, longest_run

BATCH, LENGTH, KV_HEADS, BLOCK = 2, 290, 2, 8  # more lists than one program searches
NUM_SLOTS = -(-LENGTH // BLOCK)


@pytest.mark.parametrize("chosen", [0.0, 0.5, 1.0])
def test_lists_hold_the_pairs_of_each_block(chosen):
    rng = np.random.default_rng(0)
    slots = rng.integers(0, NUM_SLOTS, (BATCH, LENGTH, KV_HEADS, 3)).astype(np.int32)
    slots[slots == 4] = 5  # a block that nobody selects
    slots[rng.random(slots.shape) >= chosen] = -1
    positions = jnp.tile(jnp.arange(LENGTH, dtype=jnp.int32), (BATCH, 1))
    pairs, begins, *_ = invert(jnp.asarray(slots), positions, BLOCK, LENGTH, interpret=True)
    assert begins.shape == (BATCH * KV_HEADS * NUM_SLOTS + 1,)
    assert sorted(np.asarray(pairs)) == list(range(slots.size))
    row, _, head, _ = np.unravel_index(np.arange(slots.size), slots.shape)
    block = (row * KV_HEADS + head) * NUM_SLOTS + slots.reshape(-1)
    for n, (begin, end) in enumerate(zip(begins, begins[1:], strict=False)):
        expected = np.flatnonzero((block == n) & (slots.reshape(-1) >= 0))
        np.testing.assert_array_equal(pairs[begin:end], expected)
    assert begins[-1] == np.sum(slots >= 0)


@pytest.mark.parametrize("lengths", [(128, 129, 256, 255, 384), (600,), (0, 1, 127, 640, 0)])
def test_runs_hold_every_pair_once(lengths):
    # Of lists that end at a cut, begin at one, have one, several or none; and 5 pairs of none.
    longest = longest_run(sum(lengths), 1, 1)
    blocks = np.repeat(np.arange(len(lengths)), lengths)
    slots = np.concatenate([blocks, np.full(5, -1)])[None, :, None, None]
    positions = jnp.arange(slots.size, dtype=jnp.int32)[None]
    lists = invert(jnp.asarray(slots, jnp.int32), positions, 1, slots.size, interpret=True)
    assert longest == 128 and lists.extras == (slots.size - 1) // longest
    runs = find_run(lists, jnp.arange(lists.runs, dtype=jnp.int32), longest)
    found = []
    for program, (block, begin, end) in enumerate(zip(*runs, strict=True)):
        assert end - begin <= longest
        if program < lists.extras:  # what `add_runs` counts on
            assert begin == (program + 1) * longest
        else:  # and where gradients are written
            assert block == program - lists.extras
        found += [(place, block) for place in range(begin, end)]
    assert sorted(found) == list(enumerate(blocks))


@pytest.mark.parametrize("blocks", [2**15 - 1, 2**15, 2**16 + 7])
def test_blocks_may_be_more_than_16_bits_hold(blocks):
    slots = np.random.default_rng(0).integers(-1, blocks, blocks).astype(np.int32)
    positions = jnp.arange(blocks, dtype=jnp.int32)[None]
    lists = invert(jnp.asarray(slots)[None, :, None, None], positions, 1, blocks, interpret=True)
    order = np.argsort(np.where(slots < 0, blocks, slots), kind="stable")
    np.testing.assert_array_equal(lists.pairs, order)
    begins = np.searchsorted(slots[order][: np.sum(slots >= 0)], np.arange(blocks + 1))
    np.testing.assert_array_equal(lists.begins, begins)


def test_runs_grow_with_what_there_is_to_do():
    assert longest_run(2**19, 16, 4) == 2 * 16 * 4
    assert longest_run(2**23, 16, 4) == 2**10


def test_short_histories_have_no_cuts():
    # In rows that are longer than a run, too.
    slots, positions = jnp.zeros((2, 1024, 2, 3), jnp.int32), jnp.zeros((2, 1024), jnp.int32)
    longest = longest_run(slots.size, 8, 3)
    assert invert(slots, positions, 8, longest + 1, interpret=True).extras > 0
    lists = invert(slots, positions, 8, longest, interpret=True)
    assert lists.extras == 0 and lists.runs == lists.blocks
    block, begin, end = find_run(lists, jnp.arange(lists.runs, dtype=jnp.int32), 128)
    np.testing.assert_array_equal(block, np.arange(lists.blocks))
    np.testing.assert_array_equal(begin, lists.begins[:-1])
    np.testing.assert_array_equal(end, lists.begins[1:])
