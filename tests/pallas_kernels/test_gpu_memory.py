"""Memory of whole programs on a GPU that is not here, as XLA plans it."""

import pytest
from gpu_compile.cases import attention_gradient, train_step

MB = 10**6
GPU = "h200"
implementations = pytest.mark.parametrize("implementation", ["xla", "triton"])
gradients = pytest.mark.parametrize("selection_gradient", ["none", "straight_through"])


def temporary_bytes(compiler, program):
    report = compiler.compile(program, GPU, "memory")
    assert not report.problems
    return report.memory["temp"]


@pytest.mark.slow
@implementations
def test_a_training_step_grows_linearly(gpu_compiler, implementation):
    short, long = (
        temporary_bytes(gpu_compiler, train_step(implementation, "straight_through", length))
        for length in (4096, 65536)
    )
    assert long / short <= 17


@gradients
@pytest.mark.parametrize(("implementation", "limit"), [("xla", 75 * MB), ("triton", 32 * MB)])
def test_the_gradient_of_attention_is_small(
    gpu_compiler, implementation, limit, selection_gradient
):
    # 1 x 16,384, 8 heads of 16 on 2, bf16. Dense attention in XLA takes 21,483 MB. The goals are 60
    # and 25 MB; docs/kernels.md says what is in the way.
    program = attention_gradient(implementation, selection_gradient)
    assert temporary_bytes(gpu_compiler, program) < limit
