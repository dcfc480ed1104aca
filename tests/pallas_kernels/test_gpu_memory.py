"""Memory of whole programs on a GPU that is not here, as XLA plans it."""

import jax.numpy as jnp
import pytest
from gpu_compile.cases import LONG_STEPS, LOSSES, attention_gradient, train_step

MB, GB = 10**6, 10**9
GPU = "h200"
gradients = pytest.mark.parametrize("selection_gradient", ["none", "straight_through"])


def temporary_bytes(compiler, program):
    report = compiler.compile(program, GPU, "memory")
    assert not report.problems
    return report.memory["temp"]


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "triton"])
def test_a_training_step_grows_linearly(gpu_compiler, implementation):
    short, long = (
        temporary_bytes(gpu_compiler, train_step(implementation, "straight_through", length))
        for length in (4096, 65536)
    )
    assert long / short <= 17


@pytest.mark.slow
def test_a_step_of_a_million_tokens_is_small(gpu_compiler):
    # 64 x 16,384 with the defaults of configs/common.py, nothing computed anew; the goal is 80 GB.
    assert temporary_bytes(gpu_compiler, LONG_STEPS[0]) < 12 * GB


@pytest.mark.parametrize("program", LOSSES, ids=str)
def test_the_loss_takes_a_hundredth_of_all_logits(gpu_compiler, program):
    # 1M items and 65,536 tokens have 131 GB of logits in bf16. Kernels keep a copy of the table.
    all_logits = program.tokens * program.items * jnp.dtype(program.dtype).itemsize
    share = 0.0025 if program.dtype == "bfloat16" else 0.01
    assert temporary_bytes(gpu_compiler, program) < share * all_logits


@gradients
@pytest.mark.parametrize(("implementation", "limit"), [("xla", 60 * MB), ("triton", 30 * MB)])
def test_the_gradient_of_attention_is_small(
    gpu_compiler, implementation, limit, selection_gradient
):
    # 1 x 16,384, 8 heads of 16 on 2, bf16. Dense attention in XLA takes 21,483 MB.
    program = attention_gradient(implementation, selection_gradient)
    if (implementation, selection_gradient) == ("triton", "none"):
        limit = 25 * MB
    assert temporary_bytes(gpu_compiler, program) < limit
