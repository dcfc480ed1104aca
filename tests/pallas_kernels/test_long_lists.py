"""Lists of queries that are cut among programs: the same numbers, equal in repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BLOSSOM, Case, either, inputs, relative_error, run
from test_numbers import BLOSSOM_INPUTS, BOUNDS, QKV, check, check_repeats

from pallas_kernels import blossom_attention
from pallas_kernels.selected_attention import inverted_lists

CUT = [
    Case(rows="packed", selection_gradient="straight_through"),
    Case(rows="packed", block_size=6, num_heads=3, num_kv_heads=1, head_size=20),
    Case("ragged", 20, 2),
]
IMPLEMENTATIONS = either("triton_interpret", "triton")
SELECTED = ("block_size", "causal", "selection_gradient")


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    """Cuts lists that are longer than the mean."""
    monkeypatch.setattr(inverted_lists, "LEAST_RUN", 8)
    monkeypatch.setattr(inverted_lists, "MEANS_IN_RUN", 1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "case, dtype", [(CUT[0], "float32"), (CUT[1], "bfloat16"), (CUT[2], "float32")], ids=str
)
def test_cut_lists_give_the_same(case, dtype, implementation):
    check("blossom_attention", case, BLOSSOM_INPUTS, BLOSSOM, implementation, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_may_be_selected_by_all(dtype, implementation):
    case = Case("ragged", num_selected=2)
    positions = case.positions
    heads = np.zeros((1, 1, case.num_kv_heads, 1), int)
    own = positions[..., None, None] // case.block_size + heads
    others = np.random.default_rng(0).integers(1, 20, own.shape)
    slots = np.concatenate([own * 0, others], -1)
    slots = np.where(slots < own, slots, -1).astype(np.int32)
    assert (slots == 0).sum() > 8 * inverted_lists.longest_run(slots.size, case.block_size, 2)
    more = {"slots": slots, "probability": np.zeros(slots.shape, np.float32)}
    found, want = (
        run("selected_attention", case, QKV, SELECTED, *which, **more)
        for which in ((implementation, dtype), ("reference", "float64"))
    )
    assert relative_error(found[0], want[0]) < BOUNDS[dtype]
    for name in QKV:
        assert relative_error(found[1][name], want[1][name]) < 2 * BOUNDS[dtype], name


@pytest.mark.parametrize("case", CUT, ids=str)
def test_their_lists_are_cut(case):
    positions = jnp.asarray(case.positions)
    slots = jnp.zeros((*positions.shape, case.num_kv_heads, case.num_selected), jnp.int32)
    longest = positions.shape[1]
    lists = inverted_lists.invert(slots, positions, case.block_size, longest, interpret=True)
    assert lists.extras > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_seeds_may_be_mapped(implementation):
    # As `blossom_jax.together` does, with lists that are cut and a selection that is trained.
    case = CUT[0]
    arrays = [jnp.asarray(inputs(case)[name], jnp.float32) for name in BLOSSOM_INPUTS]
    cotangent = jnp.asarray(inputs(case)["cotangent"], jnp.float32)

    def gradients(*arrays):
        def total(*arrays):
            out = blossom_attention(
                *arrays,
                jnp.asarray(case.positions),
                **case.sizes(*BLOSSOM),
                implementation=implementation,
            )
            return (out * cotangent).sum()

        return jax.grad(total, argnums=range(len(arrays)))(*arrays)

    both = [jnp.stack([x, x[::-1]]) for x in arrays]
    mapped = jax.jit(jax.vmap(gradients))(*both)
    for n in range(2):
        alone = jax.jit(gradients)(*(x[n] for x in both))
        for found, want in zip(mapped, alone, strict=True):
            assert relative_error(found[n], want) < 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_repeats_are_bit_equal(implementation):
    check_repeats(CUT[0], implementation, "bfloat16")
