"""Small kernels that show what compilation proves: a good one, and some that must fail."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.triton_tools import plgpu


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A program by name.

    Attributes:
      name: its name.
      make: returns a function and the ShapeDtypeStructs of its arguments.
      problem: words of what must be found wrong with it on a GPU that runs Triton; None if nothing.
    """

    name: str
    make: Callable[[], tuple[Callable, tuple]]
    problem: str | None = None

    def __str__(self) -> str:
        return self.name

    def build(self, device: Any) -> tuple[Callable, tuple]:
        """See `Program`."""
        del device
        return self.make()


def _launch(kernel: Callable, name: str, shape: tuple[int, ...], **parameters: int) -> Callable:
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        name=name,
        compiler_params=plgpu.CompilerParams(**parameters),
    )


def _block_scores(queries: int = 64, dtype: str = "bfloat16", precision: Any = None):
    """Scores queries against the 16 keys of a block whose number is read from memory."""

    def block_scores(q_ref, k_ref, block_ref, out_ref):
        keys = k_ref[pl.ds(block_ref[0] * 16, 16), :]
        contract = (((1,), (1,)), ((), ()))
        out_ref[...] = jax.lax.dot_general(
            q_ref[...], keys, contract, precision, preferred_element_type=jnp.float32
        )

    shapes = (((queries, 16), dtype), ((1024, 16), dtype), ((1,), "int32"))
    call = _launch(block_scores, "block_scores", (queries, 16), num_warps=4, num_stages=2)
    return call, tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)


def _spilling(rows: int = 64, columns: int = 128):
    """Has one warp hold a tile of 8 K numbers, 256 to a thread, which has 255 registers."""

    def spilling(x_ref, out_ref):
        x = x_ref[...]
        out_ref[...] = jnp.exp(x - x.max(0, keepdims=True)) * x.sum(1, keepdims=True)

    call = _launch(spilling, "spilling", (rows, columns), num_warps=1, num_stages=1)
    return call, (jax.ShapeDtypeStruct((rows, columns), jnp.float32),)


def _wide(size: int = 512):
    """Multiplies tiles of 512 x 512, half a megabyte each."""

    def wide(x_ref, y_ref, out_ref):
        out_ref[...] = plgpu.dot(x_ref[...], y_ref[...])

    call = _launch(wide, "wide", (size, size), num_warps=8, num_stages=2)
    return call, (jax.ShapeDtypeStruct((size, size), jnp.bfloat16),) * 2


def _no_kernel():
    return jnp.tanh, (jax.ShapeDtypeStruct((16,), jnp.float32),)


def _crash():
    """Dies as a compiler does that has met what it cannot compile."""
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang():
    time.sleep(3600)


GOOD = Demonstration("block_scores", _block_scores)
BAD = [
    Demonstration("spilling", _spilling, "spilling: spills"),
    Demonstration("48_rows", lambda: _block_scores(queries=48), "block_scores: .*power of 2"),
    Demonstration("too_wide", _wide, "wide: .*[Ss]hared memory"),
    Demonstration(
        "no_tensor_cores",
        lambda: _block_scores(dtype="float32", precision=jax.lax.Precision.HIGHEST),
        "block_scores: .*no tensor core",
    ),
    Demonstration("no_kernel", _no_kernel, "no Triton kernel"),
    Demonstration("crash", _crash, "SIGSEGV"),
]
HANGING = Demonstration("hang", _hang, "longer than")
