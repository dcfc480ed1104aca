"""Compiles a program, or a Triton kernel of it, for one GPU by jax's CUDA plugin."""

import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies

from gpu_compile import executable, kernels, machine_code
from gpu_compile.cache import Cache
from gpu_compile.report import Kernel
from gpu_compile.targets import GPUS

_MEMORY = ("temp", "argument", "output", "alias")
# What XLA writes about a launch, among the steps of a program.
_LAUNCH = r"kCustomKernel .* {name} grid: .* threads: \[(\d+), .* shared_memory: (\d+)"


def device_of(gpu: str) -> Any:
    """Returns a device to compile for, of a client that can do nothing else.

    Args:
      gpu: key of `GPUS`.
    """
    config = GPUS[gpu].target_config
    topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x1")
    return topology.devices[0]


def lower(fn: Callable, arguments: tuple, device: Any) -> jax.stages.Lowered:
    """Lowers a whole program.

    Args:
      fn: what `jax.jit` takes, or has made.
      arguments: trees of ShapeDtypeStructs; those without a sharding are put on the device.
      device: from `device_of`.
    """
    there = jax.sharding.SingleDeviceSharding(device)

    def put(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or there)

    jitted = fn if isinstance(fn, jax.stages.Wrapped) else jax.jit(fn)
    with kernels.lowering_for(device):
        return jitted.lower(*jax.tree.map(put, arguments))


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that XLA plans for a program, by what they hold."""
    plan = compiled.memory_analysis()
    return {kind: getattr(plan, f"{kind}_size_in_bytes") for kind in _MEMORY}


def compile_kernel(call: kernels.PallasCall, device: Any, cache: Cache) -> Kernel:
    """Compiles a kernel alone, which is how XLA compiles it inside a program too.

    Args:
      call: from `pallas_calls`.
      device: from `device_of`.
      cache: where such a kernel may have been kept.
    """
    lowered = lower(call.launch, call.arguments, device)
    triton = kernels.triton_kernel(lowered)
    key = cache.key(device.device_kind, triton.digest)
    if (kept := cache.get(key)) is not None:
        return Kernel(**kept)
    compiled, threads, shared_memory = compile_alone(lowered, call.name)
    code = machine_code.disassemble(cubin(compiled, call.name))
    kernel = Kernel(
        name=call.name,
        threads=threads,
        registers=code.registers,
        shared_memory=shared_memory,
        spills=code.spills,
        tensor_core=code.tensor_core,
        products=triton.products,
    )
    cache.put(key, dataclasses.asdict(kernel))
    return kernel


def compile_alone(lowered: jax.stages.Lowered, name: str) -> tuple[jax.stages.Compiled, int, int]:
    """Compiles one kernel; returns also the threads and bytes of shared memory of its launch.

    Args:
      lowered: of a `PallasCall`.
      name: of the kernel.
    """
    with tempfile.TemporaryDirectory() as dump:
        compiled = lowered.compile(compiler_options={"xla_dump_to": dump})
        return compiled, *_launch(pathlib.Path(dump), name)


def cubin(compiled: jax.stages.Compiled, name: str) -> bytes:
    """Returns the ELF file of one kernel of a compiled program.

    Args:
      compiled: the program.
      name: of the kernel.
    """
    for found in executable.cubins(compiled.runtime_executable().serialize()):
        if f".text.{name}\0".encode() in found:
            return found
    raise LookupError(f"XLA's executable has no kernel {name!r}")


def _launch(dump: pathlib.Path, name: str) -> tuple[int, int]:
    """Returns the threads and the bytes of shared memory that XLA launches a kernel with."""
    for path in dump.glob("*thunk_sequence.txt"):
        if found := re.search(_LAUNCH.format(name=re.escape(name)), path.read_text()):
            return int(found[1]), int(found[2])
    raise LookupError(f"XLA's dump has no launch of {name!r}")
