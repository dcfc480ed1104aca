"""The Triton kernels on a real GPU: `BLOSSOM_TEST_PLATFORM=cuda python -m pytest -m gpu`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BLOSSOM, CASES, LARGE_CASES, Case
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from test_numbers import BLOSSOM_INPUTS, QKV, check, check_repeats, check_selection

from pallas_kernels import triton_tools

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


def test_instructions_that_interpret_mode_does_not_run():
    def kernel(x, out):
        at = jnp.arange(64, dtype=jnp.int32)
        a, b, c = (plgpu.load(x.at[jnp.full_like(at, n), at]) for n in range(3))
        wide = [triton_tools.widen(y, False) for y in (a, b, c)]
        for n, found in enumerate([*wide, triton_tools.fms(*wide, False)]):
            plgpu.store(out.at[jnp.full_like(at, n), at], found)

    x = jax.random.normal(jax.random.key(0), (3, 64), jnp.bfloat16)
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((4, 64), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
    )
    a, b, c = np.asarray(x, np.float32)  # whose products f32 holds exactly
    np.testing.assert_array_equal(call(x), [a, b, c, a * b - c])
