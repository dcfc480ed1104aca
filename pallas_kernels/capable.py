"""Refuses to lower Triton kernels for a GPU that cannot run them, in plain words.

A program is traced without looking at devices, so that it can be compiled for another machine; only
when it is lowered does it know for which. XLA would refuse such a GPU too, later and less clearly.
"""

import contextlib
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

LEAST_CAPABILITY = 8.0  # of a GPU that Triton compiles for: A100, L4 and later
_KIB = 1024
# Bytes that a program may have, by compute capability (CUDA programming guide); else the least.
LEAST_SHARED_MEMORY, MOST_SHARED_MEMORY = 99 * _KIB, 227 * _KIB
SHARED_MEMORY = dict.fromkeys(("8.0", "8.7"), 163 * _KIB)
SHARED_MEMORY |= dict.fromkeys(("9.0", "10.0", "10.3"), MOST_SHARED_MEMORY)


def refusal(device: Any, shared_memory: int = 0) -> str | None:
    """Says why a GPU cannot run Triton kernels; None if it can.

    Args:
      device: a jax device, here or elsewhere.
      shared_memory: bytes that a program of the kernels needs.
    """
    capability = getattr(device, "compute_capability", None)
    try:
        enough = float(str(capability)) >= LEAST_CAPABILITY
    except ValueError:
        return f"Triton needs an NVIDIA GPU, this one tells {capability!r}"
    if enough:
        available = SHARED_MEMORY.get(str(capability), LEAST_SHARED_MEMORY)
        if shared_memory <= available:
            return None
        return f"it needs {shared_memory} bytes of shared memory, this GPU has {available}"
    return f"Triton needs compute capability {LEAST_CAPABILITY}, this GPU has {capability}"


def where_triton_runs(x: jax.Array) -> jax.Array:
    """Returns x, in a program that can be lowered for no GPU without Triton.

    Args:
      x: what the kernel reads, any one of its arrays.

    Raises:
      NotImplementedError: when lowered for an older GPU; with the reason.
    """
    return _where_triton_runs.bind(x)


_where_triton_runs = Primitive("where_triton_runs")
_where_triton_runs.def_abstract_eval(lambda x: x)
_where_triton_runs.def_impl(lambda x: jax.jit(_where_triton_runs.bind)(x))
batching.defvectorized(_where_triton_runs)
mlir.register_lowering(_where_triton_runs, lambda ctx, x: [x])


def _lower_for_cuda(ctx, x):
    for device in _devices(ctx.module_context.axis_context):
        if reason := refusal(device):
            raise NotImplementedError(reason)
    return [x]


def _devices(context) -> tuple:
    """Returns the devices that a program is lowered for; () where it does not know."""
    if assignment := getattr(context, "device_assignment", None):
        return tuple(assignment)
    try:  # inside of jax.shard_map, where a mesh may be abstract
        found = context.mesh.devices.flat
    except (AttributeError, ValueError):
        return ()
    return tuple(device for device in found if device.platform != "cpu")


def _lower_for_cpu(ctx, x):
    raise NotImplementedError("Triton kernels need an NVIDIA GPU; this program is for a CPU")


mlir.register_lowering(_where_triton_runs, _lower_for_cuda, platform="cuda")
mlir.register_lowering(_where_triton_runs, _lower_for_cpu, platform="cpu")
with contextlib.suppress(ImportError, AttributeError):  # jax promises no such set
    from jax._src.dispatch import prim_requires_devices_during_lowering

    prim_requires_devices_during_lowering.add(_where_triton_runs)
