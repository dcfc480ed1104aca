"""The Triton kernels on a real GPU: `BLOSSOM_TEST_PLATFORM=cuda python -m pytest -m gpu`."""

import jax
import pytest
from cases import BLOSSOM, CASES, LARGE_CASES, Case
from test_numbers import BLOSSOM_INPUTS, QKV, check, check_repeats, check_selection

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU here"),
]
CAUSAL = [case for case in [*CASES, *LARGE_CASES] if case.causal]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_blossom_attention_equals_reference(case, dtype):
    check("blossom_attention", case, BLOSSOM_INPUTS, BLOSSOM, "triton", dtype)


@pytest.mark.parametrize("case", [CAUSAL[0], *LARGE_CASES[:2]], ids=str)
def test_power_attention_alone(case):
    check("power_attention", case, QKV, ("window", "causal", "max_history"), "triton", "float32")


@pytest.mark.parametrize("case", [CAUSAL[0], *LARGE_CASES], ids=str)
def test_selection_equals_reference(case):
    check_selection(case, "triton")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_repeats_are_bit_equal(dtype):
    check_repeats(Case("long", 16, 4, selection_gradient="straight_through"), "triton", dtype)


def test_none_takes_the_kernels():
    from pallas_kernels.dispatch import choose

    assert choose("power_attention", None, refusal=None) == "triton"
