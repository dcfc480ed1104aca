"""Every op, every implementation, every case: outputs and gradients against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    BLOSSOM,
    CASES,
    IMPLEMENTATIONS,
    SELECTION,
    Case,
    inputs,
    relative_error,
    run,
    runs,
)

import pallas_kernels
from pallas_kernels.blossom_attention import xla_band
from pallas_kernels.power_attention import head_reads, near
from pallas_kernels.triton_tools import padded_head

QKV = ("q", "k", "v")
BLOSSOM_INPUTS = (*QKV, "summary_keys", "gate")
BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2}


@functools.cache
def want(op, case, names, sizes):
    return run(op, case, names, sizes, "reference", "float64")


def check(op, case, names, sizes, implementation, dtype):
    out, gradients = run(op, case, names, sizes, implementation, dtype)
    want_out, want_gradients = want(op, case, names, sizes)
    assert relative_error(out, want_out) < BOUNDS[dtype]
    for name, gradient in gradients.items():
        assert relative_error(gradient, want_gradients[name]) < 2 * BOUNDS[dtype], name
    padding = case.positions < 0
    assert not out[padding].any()
    for name in set(names) - {"summary_keys"}:
        assert not gradients[name][padding].any(), name


@pytest.mark.parametrize("case, implementation", runs(CASES), ids=str)
def test_blossom_attention_equals_reference(case, implementation):
    check("blossom_attention", case, BLOSSOM_INPUTS, BLOSSOM, implementation, "float32")


@pytest.mark.parametrize("case", [CASES[9], CASES[11]], ids=str)
def test_keys_may_be_met_in_a_loop(case, monkeypatch):
    monkeypatch.setattr(near, "MOST_REGISTERS", 0)  # as if heads were wide
    check("blossom_attention", case, BLOSSOM_INPUTS, BLOSSOM, "triton_interpret", "float32")


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[8], CASES[10]], ids=str)
def test_short_histories_may_be_attended_by_lists(case, monkeypatch):
    monkeypatch.setattr(xla_band, "_MOST_KEYS", 0)
    check("blossom_attention", case, BLOSSOM_INPUTS, BLOSSOM, "xla", "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bands_may_be_attended_in_groups(dtype, monkeypatch):
    case = next(case for case in CASES if case.rows == "short")
    logits = case.max_history * 2 * case.max_history * case.num_heads
    # Two of nine chunks at a time, so the last group is not full.
    monkeypatch.setattr(xla_band, "_LOGITS_AT_ONCE", 2 * logits)
    check("blossom_attention", case, BLOSSOM_INPUTS, BLOSSOM, "xla", dtype)


@pytest.mark.parametrize("case, implementation", runs([CASES[0], CASES[7], CASES[12]]), ids=str)
def test_bfloat16_stays_within_its_bound(case, implementation):
    check("blossom_attention", case, BLOSSOM_INPUTS, BLOSSOM, implementation, "bfloat16")


@pytest.mark.parametrize("case, implementation", runs([CASES[0], CASES[12], CASES[14]]), ids=str)
def test_power_attention_alone(case, implementation):
    sizes = ("window", "causal", "max_history")
    check("power_attention", case, QKV, sizes, implementation, "float32")


@pytest.mark.parametrize(
    "num_heads, dtype, together, reads",
    [
        (2, "float32", 1, (1, 1, 2)),  # of a distance, of a step at each, distances of a step
        (6, "float32", 1, (3, 1, 2)),
        (12, "bfloat16", 2, (3, 1, 2)),
        (8, "float32", 1, (4, 4, 1)),
        (16, "bfloat16", 1, (8, 4, 1)),
        (8, "float32", 2, (2, 2, 1)),
    ],
)
def test_heads_are_read_in_several_ways(num_heads, dtype, together, reads, monkeypatch):
    case = Case("long", num_heads=num_heads)
    row_bytes = padded_head(case.head_size) * jnp.dtype(dtype).itemsize
    monkeypatch.setattr(head_reads, "HEADS_BYTES", together * row_bytes)
    how = head_reads.HeadReads(num_heads // case.num_kv_heads, row_bytes)
    assert how.together == together and (how.of_distance, how.of_step, how.distances) == reads
    check("power_attention", case, QKV, ("window",), "triton_interpret", dtype)


@pytest.mark.parametrize("case, implementation", runs([*CASES[:7], *CASES[10:]]), ids=str)
def test_selection_equals_reference(case, implementation):
    check_selection(case, implementation)


def check_selection(case, implementation):
    arrays = {name: jnp.asarray(inputs(case)[name], jnp.float32) for name in ("q", "summary_keys")}
    weight = np.random.default_rng(1).normal(size=(*case.positions.shape, 1, 1))

    def select(implementation, q, summary_keys):
        slots, probability = pallas_kernels.block_selection(
            q,
            summary_keys,
            jnp.asarray(case.positions),
            **case.sizes(*SELECTION),
            implementation=implementation,
        )
        return (probability * weight).sum(), (slots, probability)

    graded = jax.value_and_grad(select, argnums=(1, 2), has_aux=True)
    found = [
        jax.jit(functools.partial(graded, name))(*arrays.values())
        for name in ("reference", implementation)
    ]
    (
        ((_, (want_slots, want_probability)), want_gradients),
        ((_, (slots, probability)), gradients),
    ) = found
    np.testing.assert_array_equal(slots, want_slots)
    assert relative_error(probability, want_probability) < 1e-5
    for got, gradient in zip(gradients, want_gradients, strict=True):
        assert relative_error(got, np.asarray(gradient, np.float64)) < 2e-5
    assert (np.diff(probability, axis=-1) <= 0).all()
    assert ((slots == -1) == (probability == 0)).all()


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_equal_scores_go_to_the_lower_slot(implementation):
    positions = jnp.arange(40, dtype=jnp.int32)[None]
    q, keys = jnp.ones((1, 40, 2, 4)), jnp.ones((1, 10, 2, 4))
    slots, _ = pallas_kernels.block_selection(
        q, keys, positions, block_size=4, num_selected=3, implementation=implementation
    )
    assert slots[0, 39, 0].tolist() == [0, 1, 2]
    assert slots[0, 9, 1].tolist() == [0, 1, -1]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_repeats_are_bit_equal(implementation):
    case = Case(rows="packed", selection_gradient="straight_through")
    check_repeats(case, implementation, "float32")


def check_repeats(case, implementation, dtype):
    runs = [
        run("blossom_attention", case, BLOSSOM_INPUTS, BLOSSOM, implementation, dtype)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    for name in BLOSSOM_INPUTS:
        np.testing.assert_array_equal(runs[0][1][name], runs[1][1][name])
