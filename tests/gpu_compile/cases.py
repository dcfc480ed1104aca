"""The programs that are compiled: every op, by everything that shapes its kernels, and the loss.

To add one, add a `Case` to `EXTREMES`, or a value to the loops of `_matrix`.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from gpu_compile import demonstrations, training
from gpu_compile.case import DTYPES, OPS, Case, Program
from gpu_compile.targets import TRITON_GPUS
from pallas_kernels import capable, triton_limits

HEAD_SIZES, GROUPS, BLOCK_SIZES = (16, 32, 64, 128), (1, 4, 8), (16, 32, 64)


def _matrix() -> Iterator[Case]:
    """Yields every op by all that the dispatcher may be asked for."""
    for dtype, head_size, group in itertools.product(DTYPES, HEAD_SIZES, GROUPS):
        sizes: dict[str, Any] = {"dtype": dtype, "head_size": head_size, "group": group}
        for direction in ("forward", "backward"):
            yield Case("power_attention", direction=direction, **sizes)
        for block_size, op in itertools.product(BLOCK_SIZES, [*OPS][1:]):
            sizes["block_size"] = block_size
            yield Case(op, **sizes)
            yield Case(op, direction="backward", **sizes)
            if "selection_gradient" in OPS[op][1]:
                yield _every_kernel(op, **sizes)


def _every_kernel(op: str = "blossom_attention", **sizes: Any) -> Case:
    return Case(op, direction="backward", selection_gradient="straight_through", **sizes)


_ENDS: tuple[dict[str, Any], ...] = (
    {"num_selected": 16},
    {"num_selected": 16, "head_size": 128, "group": 8, "block_size": 64},
    {"num_selected": triton_limits.LARGEST_SELECTION, "rows": 1},
    {"num_selected": 1, "window": 1},
    {"window": triton_limits.LARGEST_BAND, "head_size": triton_limits.LARGEST_HEAD},
    {"block_size": triton_limits.LARGEST_BAND, "head_size": triton_limits.LARGEST_HEAD},
    {"group": triton_limits.LARGEST_GROUP, "head_size": triton_limits.LARGEST_HEAD},
    {"length": triton_limits.LONGEST_ROW, "rows": 1},
    {"length": 50},
    {"head_size": 24, "group": 3},
)
# Sizes at the ends of what is served, and sizes that are padded.
EXTREMES = [_every_kernel(dtype=dtype, **sizes) for dtype in DTYPES for sizes in _ENDS]
EXTREMES = [case for case in EXTREMES if case.shared_memory <= capable.MOST_SHARED_MEMORY]
# The kernels of the loss, at the ends of what they serve and between.
LOSS_KERNELS = [
    training.LossGradient(items=10_000, hidden_size=size) for size in (16, 64, 128, 256)
]
MATRIX = [*_matrix(), *EXTREMES, *LOSS_KERNELS]


# GPU, dtype, head size, group and block size: each value of any of them, and the largest program.
_COVERING = (
    ("a100", "bfloat16", 64, 8, 32),
    ("l4", "float32", 32, 1, 16),
    ("h200", "bfloat16", 16, 4, 16),  # as released
    ("h200", "float32", 128, 8, 64),
    ("b200", "bfloat16", 128, 1, 16),
)


def _subset() -> Iterator[tuple[Program, str]]:
    """Yields some of the matrix, each for one GPU: what runs with the other tests.

    Every kernel, forward and backward, by `_COVERING`; each op alone; and those of the loss.
    """
    for gpu, *sizes in _COVERING:
        names = ("dtype", "head_size", "group", "block_size")
        yield _every_kernel(**dict(zip(names, sizes, strict=True))), gpu
    for op, gpu in zip(OPS, TRITON_GPUS, strict=True):
        yield Case(op), gpu
        yield Case(op, direction="backward", dtype="float32", head_size=64), gpu
    yield from zip(LOSS_KERNELS, TRITON_GPUS, strict=True)


SUBSET = list(_subset())
_PATHS = ("xla", "triton"), ("none", "straight_through")


def train_step(implementation: str, selection_gradient: str, length: int) -> training.TrainStep:
    """Returns the training step that stands in `PROGRAMS` for these."""
    return training.TrainStep(implementation, selection_gradient, length)


def attention_gradient(implementation: str, selection_gradient: str) -> Case:
    """Returns the gradient of attention alone that stands in `PROGRAMS` for these."""
    return Case(
        "blossom_attention",
        implementation,
        "backward",
        selection_gradient=selection_gradient,
        length=16384,
        rows=1,
    )


LOSSES = [training.LossGradient(dtype) for dtype in ("bfloat16", "float32")]
LOSSES += [training.LossGradient(items=10**7)]
LONG_STEPS = [training.DefaultStep(remat) for remat in ("none", "block")]

_ALL: list[Program] = [*MATRIX, *(case for case, _ in SUBSET)]
for _path in itertools.product(*_PATHS):
    _ALL += [train_step(*_path, length) for length in (4096, 65536)]
    _ALL += [attention_gradient(*_path)]
_ALL += [*LOSSES, *LONG_STEPS, demonstrations.GOOD, *demonstrations.BAD, demonstrations.HANGING]
PROGRAMS: dict[str, Program] = {str(program): program for program in _ALL}
