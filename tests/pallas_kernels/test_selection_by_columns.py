"""The selection by columns gives what sorting every score gives, also where it must leave doubt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import block_selection
from pallas_kernels.block_selection import columns, scores, triton, triton_forward
from pallas_kernels.triton_tools import write

LENGTH, BLOCK, HEAD = 1100, 2, 16
SLOTS = LENGTH // BLOCK
POSITIONS = {
    "one sequence": np.arange(LENGTH),
    "packed": np.concatenate([np.arange(333), np.full(10, -1), np.arange(700), np.arange(57)]),
}


def arrays(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    q = jax.random.normal(keys[0], (1, LENGTH, 2, HEAD), jnp.bfloat16)
    return q, jax.random.normal(keys[1], (1, SLOTS, 2, HEAD), jnp.bfloat16)


def select(q, summary_keys, positions="one sequence", num_selected=4):
    slots, _ = triton.block_selection(
        q,
        summary_keys,
        jnp.asarray(POSITIONS[positions], jnp.int32)[None],
        block_size=BLOCK,
        num_selected=num_selected,
        causal=True,
        mask_own_block=False,
        with_probability=False,
        interpret=True,
    )
    return np.asarray(slots)


def check(monkeypatch, *args, **kwargs):
    found = select(*args, **kwargs)
    monkeypatch.setattr(scores, "MOST_REPEATS", -1)  # every score is sorted in
    np.testing.assert_array_equal(found, select(*args, **kwargs))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("num_selected", [1, 3, 4])
def test_random_scores(monkeypatch, positions, num_selected):
    check(monkeypatch, *arrays(), positions, num_selected)


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k: (q, jnp.tile(k[:, : SLOTS // 5], (1, 5, 1, 1))),  # ties between tiles
        lambda q, k: (q, k.at[:, 1::2].set(k[:, ::2])),  # ties between columns
        lambda q, k: (q, k.at[:, 3::32].multiply(8)),  # the best all in one column
        lambda q, k: (q, 1 + k * 2**-7),  # scores that differ in their last bits alone
        lambda q, k: (q * 0, k),
        lambda q, k: (q, k * 50),  # most choices are below the least probability
        lambda q, k: (abs(q), -abs(k)),
        lambda q, k: (q * 2**-120, k),
    ],
)
def test_scores_that_leave_doubt(monkeypatch, change):
    check(monkeypatch, *change(*arrays()))


@pytest.mark.parametrize(("num_selected", "with_probability"), [(4, False), (5, False), (4, True)])
def test_exact_ties_go_to_the_first_slots(num_selected, with_probability):
    rng, length = np.random.default_rng(0), 200
    q, keys = (jnp.asarray(rng.integers(-1, 2, (1, length, 1, HEAD)), jnp.bfloat16) for _ in "qk")
    positions = jnp.arange(length, dtype=jnp.int32)[None]
    sizes = {"block_size": 1, "num_selected": num_selected}
    rest = {"causal": True, "mask_own_block": False, "with_probability": with_probability}
    slots, _ = triton.block_selection(q, keys, positions, interpret=True, **sizes, **rest)
    expected, _ = block_selection(q, keys, positions, implementation="reference", **sizes)
    np.testing.assert_array_equal(slots, expected)


def test_nan_in_a_slot_that_nobody_may_select(monkeypatch):
    q, keys = (x[:, :400] for x in arrays())
    keys, positions = keys[:, :200].at[:, -1].set(jnp.nan), np.arange(400)
    positions[-20:] = -1
    monkeypatch.setitem(POSITIONS, "nan", positions)
    found = select(q, keys, "nan")
    np.testing.assert_array_equal(found, select(q, keys.at[:, -1].set(0), "nan"))


def test_pairs_without_a_candidate_exist():
    for slots in (64, 65, 128):
        nowhere = scores.Slots(*map(jnp.int32, (slots, 0, 0, 0)))
        first, end = columns.pairs_of(nowhere, sizes(slots=slots))
        assert first < sizes(slots=slots).tile_pairs and end == 0


def test_few_queries_are_sorted_anew(monkeypatch):
    def mark(x, at, out, sizes, with_probability, interpret, floor):
        row = triton_forward.read_queries(x, *at, sizes).row
        for n in range(sizes.num_selected):
            write(out["slots"], row * sizes.num_selected + n, None, jnp.full_like(row, -7))

    monkeypatch.setattr(triton_forward, "select_sorted", mark)
    late = select(*arrays())[0, 16:]  # before, there may be no slot
    sorted_anew = (late == -7).all(-1)
    assert 0 < sorted_anew.mean() < 0.2
    assert (late[~sorted_anew] >= 0).all()


def test_large_selections_are_sorted():
    few, many = (sizes(num_selected=n) for n in (4, 5))
    assert few.by_columns and not many.by_columns


def test_the_number_of_a_slot_has_room():
    for slots in (1, 32, 33, 64, 65, 1000, 8192):
        found = sizes(slots=slots)
        assert slots <= 2**found.slot_bits
        assert found.by_columns
    assert not sizes(slots=8193).by_columns


sizes = functools.partial(
    scores.SelectionSizes,
    length=LENGTH,
    slots=SLOTS,
    kv_heads=2,
    block_size=BLOCK,
    num_selected=4,
    tiles=triton.SelectionTiles.heuristics(HEAD, jnp.bfloat16),
)
