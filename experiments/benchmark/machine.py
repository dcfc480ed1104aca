"""Measures what bounds attention with small heads: the device's copies and its exponentials."""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from experiments.benchmark import measure

_CHAIN = 128  # exponentials to each element read and written, so that bytes don't count
_LANES = 1024  # elements of one program of the kernel


class Ceilings(NamedTuple):
    """Rates that no program passes, as measured by the simplest that should reach them.

    Attributes:
      bytes_per_second: Of a large copy, bytes read and bytes written added up.
      exponentials_per_second: Of f32 exponentials in registers.
    """

    bytes_per_second: float
    exponentials_per_second: float


def measure_ceilings(rounds: int = 3) -> Ceilings:
    """Measures both rates on the first device.

    The array that is copied is 1 GiB on an accelerator, far beyond any cache. The exponentials are
    those of an XLA program or, where that is faster, of a Triton kernel: its exp2 is little more
    than the hardware's instruction, where exp takes four multiply-adds besides.

    Args:
      rounds: As in `measure.medians`.
    """
    small = jax.default_backend() == "cpu"
    source = jnp.ones(2**22 if small else 2**28, jnp.float32)
    lanes = jnp.linspace(0.1, 1, 2**16 if small else 2**24, dtype=jnp.float32)
    calls = {
        "copy": functools.partial(jax.jit(jnp.negative), source),
        "xla": functools.partial(jax.jit(_chain), lanes),
        "triton": functools.partial(jax.jit(_chain_in_triton), lanes),
    }
    failed: dict[str, str] = {}
    seconds = measure.medians(calls, rounds, failed)
    if small:  # Triton has no CPU, that is no surprise
        failed.pop("triton", None)
    for name, why in failed.items():
        warnings.warn(f"the {name} ceiling was not measured: {why}", stacklevel=2)
    exponentials = min(seconds[name] for name in ("xla", "triton") if name in seconds)
    return Ceilings(2 * source.nbytes / seconds["copy"], _CHAIN * lanes.size / exponentials)


def _chain(x: jax.Array, exponential: Callable = jnp.exp) -> jax.Array:
    """Stays near the fixed point, 0.57 for exp and 0.64 for exp2."""
    for _ in range(_CHAIN):
        x = exponential(-x)
    return x


def _chain_kernel(x_ref, out_ref):
    out_ref[...] = _chain(x_ref[...], jnp.exp2)


def _chain_in_triton(x: jax.Array) -> jax.Array:
    block = pl.BlockSpec((_LANES,), lambda n: (n,))
    with warnings.catch_warnings():  # deprecated since jax 0.11
        warnings.filterwarnings("ignore", message=".*Triton.*", category=DeprecationWarning)
        from jax.experimental.pallas import triton

        return pl.pallas_call(
            _chain_kernel,
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            grid=(x.size // _LANES,),
            in_specs=[block],
            out_specs=block,
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
            name="exponentials",
        )(x)
