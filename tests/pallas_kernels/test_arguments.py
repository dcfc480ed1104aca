"""Mistakes are named before anything is traced; implementations are chosen by name."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import row

import pallas_kernels
from pallas_kernels import validate_positions

B, L, H, G, D, S, N = 2, 32, 4, 2, 8, 4, 3
GOOD = {
    "q": jnp.ones((B, L, H, D)),
    "k": jnp.ones((B, L, G, D)),
    "v": jnp.ones((B, L, G, D)),
    "summary_keys": jnp.ones((B, L // S, G, D)),
    "gate": jnp.ones((B, L, H, 2)),
    "positions": jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L)),
}
SIZES = {"block_size": S, "num_selected": N, "window": 8}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": jnp.ones((B, L, D))}, r"q must be \[B, L, H, D\], got shape \(2, 32, 8\)"),
        ({"positions": jnp.zeros((B, L + 1), jnp.int32)}, r"positions must be .* \(2, 33\)"),
        ({"positions": jnp.zeros((B, L))}, "positions must be int32, got float32"),
        ({"k": jnp.ones((B, L, G, D + 1))}, "k and v must have one shape"),
        (
            {"k": jnp.ones((B, L, 3, D)), "v": jnp.ones((B, L, 3, D))},
            "4 must be a multiple of .* 3",
        ),
        ({"q": jnp.ones((B, L, H, D), jnp.bfloat16)}, "must share a dtype"),
        ({"summary_keys": jnp.ones((B, L, G, D))}, r"summary_keys must be .*\(2, 8, G, 8\)"),
        ({"summary_keys": jnp.ones((B, L // S, 1, D))}, "summary_keys have 1 heads, k has 2"),
        ({"gate": jnp.ones((B, L, H))}, r"gate must be \[B, L, H, 2\]"),
        ({"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
        ({"num_selected": 1.5}, "num_selected must be an integer of at least 1, got 1.5"),
        ({"window": -1}, "window must be an integer of at least 1, got -1"),
        ({"max_history": 0}, "max_history must be an integer of at least 1, got 0"),
        ({"selection_gradient": "x"}, "selection_gradient='x' must be one of none, straight_thr"),
        ({"implementation": "cuda"}, "implementation='cuda' must be None or one of reference, xla"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {**GOOD, **SIZES, **change}
    arrays = [arguments.pop(name) for name in GOOD]
    with pytest.raises(ValueError, match=message):
        pallas_kernels.blossom_attention(*arrays, **arguments)


def test_slots_of_another_shape_are_named():
    slots = jnp.zeros((B, L, H, N), jnp.int32)
    with pytest.raises(ValueError, match=r"slots must be int32 \[B, L, G, N\] = \(2, 32, 2, N\)"):
        pallas_kernels.selected_attention(
            *(GOOD[x] for x in "qkv"),
            slots,
            jnp.zeros(slots.shape),
            GOOD["positions"],
            block_size=S,
        )


def test_a_known_implementation_that_is_not_there_says_what_is():
    with pytest.raises(NotImplementedError, match="power_attention has no .*triton.* has referen"):
        pallas_kernels.power_attention(
            *(GOOD[x] for x in "qkv"), GOOD["positions"], window=8, implementation="triton"
        )


@pytest.mark.parametrize(
    "positions, max_history, message",
    [
        ([[0, 1, 3]], None, r"positions\[0, 2\] is 3 after 1"),
        ([[0, 1], [5, 6]], None, r"positions\[1, 0\] is 5 after -1"),
        ([[0, -2]], None, r"positions\[0, 1\] is -2"),
        ([[-1, 1]], None, r"positions\[0, 1\] is 1 after -1"),
        ([[0, 1, 2]], 2, r"positions\[0, 2\] is 2 .* below max_history=2"),
        ([0, 1], None, r"positions must be int\[B, L\]"),
    ],
)
def test_validate_positions_names_the_first_mistake(positions, max_history, message):
    with pytest.raises(ValueError, match=message):
        validate_positions(np.array(positions), max_history)


def test_validate_positions_accepts_every_kind_of_row():
    validate_positions(np.stack([row(20, 5, -2, 3, 1), row(20, -20), row(20, 20)]), 20)
