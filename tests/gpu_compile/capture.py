"""Takes the kernels of attention out of jax: their machine code, and what they read and write.

    python -m gpu_compile.capture kernels FOLDER --length 16384 --rows 16 [--gpu h200]
    python -m gpu_compile.capture arrays FOLDER --length 16384 --rows 16

with the folder `tests` on PYTHONPATH. The first needs no GPU. The second runs the gradient of
attention on one, kernel by kernel, and keeps the arrays: 4 GB at these sizes. What is in FOLDER is
launched without jax by `gpu_compile.launch`: under `ncu`, which crashes on programs of jax, and to
time versions of a kernel on the same arrays.
"""

import argparse
import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu_compile import compiler, environment, kernels
from gpu_compile.case import DTYPES, KV_HEADS, Case
from gpu_compile.launch import LAUNCHES
from gpu_compile.targets import TRITON_GPUS

_CALLS = ("jit", "pjit", "closed_call", "custom_vjp_call")  # run what is inside once


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a kernel is launched.

    Attributes:
      key: number of the launch in the program, and the kernel's name: that of its files.
      name: of the kernel.
      grid: programs along each of its axes.
      threads: of a program.
      shared_memory: bytes of a program.
      inputs: how many arrays it reads.
      outputs: how many it writes.
    """

    key: str
    name: str
    grid: tuple[int, ...]
    threads: int
    shared_memory: int
    inputs: int
    outputs: int


def main() -> None:
    """Captures what the command line asks for."""
    options = _parse()
    if options.heads % KV_HEADS:
        raise SystemExit(f"--heads={options.heads} must be a multiple of {KV_HEADS}")
    if options.what == "kernels":
        environment.begin_anew_with_plugin("gpu_compile.capture")
    options.folder.mkdir(parents=True, exist_ok=True)
    case = Case(
        "blossom_attention",
        direction="backward",
        dtype=options.dtype,
        head_size=options.head_size,
        group=options.heads // KV_HEADS,
        length=options.length,
        rows=options.rows,
        selection_gradient=options.selection_gradient,
    )
    if options.what == "arrays":
        write_arrays(case, options.folder)
        return
    for launch in write_kernels(case, options.gpu, options.folder, options.only):
        print(launch.key, f"{math.prod(launch.grid)} programs of {launch.threads} threads")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_compile.capture", description=__doc__)
    add = parser.add_argument
    add("what", choices=("kernels", "arrays"))
    add("folder", type=pathlib.Path)
    add("--length", type=int, default=Case.length)
    add("--rows", type=int, default=Case.rows)
    add("--heads", type=int, default=8, help=f"query heads, on {KV_HEADS} key/value heads")
    add("--head-size", type=int, default=Case.head_size)
    add("--dtype", choices=DTYPES, default=Case.dtype)
    add("--selection-gradient", choices=("none", "straight_through"), default="none")
    add("--gpu", choices=TRITON_GPUS, default="h200", help="whose machine code")
    add("--only", default="", help="part of the names of the kernels that are compiled")
    return parser.parse_args()


def write_kernels(case: Case, gpu: str, folder: pathlib.Path, only: str = "") -> list[Launch]:
    """Compiles the kernels of a case, and writes their machine code and `LAUNCHES`.

    Args:
      case: what to compile.
      gpu: key of `GPUS`.
      folder: where to write.
      only: part of the names of the kernels that are compiled.
    """
    device, launches = compiler.device_of(gpu), []
    function, shapes = case.build(device)
    with kernels.lowering_for(device):
        traced = jax.make_jaxpr(function)(*shapes)
    for number, equation in enumerate(kernels.launching(traced.jaxpr)):
        call = kernels.call_of(equation)
        if only not in call.name:
            continue
        lowered = compiler.lower(call.launch, call.arguments, device)
        compiled, threads, shared = compiler.compile_alone(lowered, call.name)
        key, count = f"{number}_{call.name}", (len(call.arguments), len(equation.outvars))
        (folder / f"{key}.cubin").write_bytes(compiler.cubin(compiled, call.name))
        launches.append(Launch(key, call.name, call.grid, threads, shared, *count))
    text = json.dumps([dataclasses.asdict(launch) for launch in launches], indent=1)
    (folder / LAUNCHES).write_text(text + "\n")
    return launches


def write_arrays(case: Case, folder: pathlib.Path) -> None:
    """Runs a case on random arrays, and writes what each kernel reads and writes.

    Args:
      case: what to run, by an implementation that this machine can run.
      folder: where to write: KEY_in0.npy, KEY_out0.npy and so on; bf16 as uint16.
    """
    function, shapes = case.build(None)
    arguments = [_draw(n, shape) for n, shape in enumerate(shapes)]
    traced = jax.make_jaxpr(function)(*arguments)
    number = 0

    def keep(name: str, inputs: list, outputs: list) -> None:
        nonlocal number
        for kind, arrays in (("in", inputs), ("out", outputs)):
            for n, array in enumerate(arrays):
                np.save(folder / f"{number}_{name}_{kind}{n}.npy", _as_saved(array))
        number += 1

    _run(traced.jaxpr, traced.consts, arguments, keep)


def _draw(number: int, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Draws an argument: positions of whole rows, a gate in 0..1, or standard normal."""
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return jnp.broadcast_to(jnp.arange(shape.shape[-1], dtype=shape.dtype), shape.shape)
    drawn = jax.random.normal(jax.random.key(number), shape.shape, shape.dtype)
    return jax.nn.sigmoid(drawn) if shape.shape[-1] == 2 else drawn


def _as_saved(array: jax.Array) -> np.ndarray:
    found = np.asarray(array)
    return found.view(np.uint16) if found.dtype == jnp.bfloat16 else found


def _run(jaxpr: Any, constants: Any, arguments: list, keep: Any) -> list:
    """Runs a traced program, equation by equation where there is a Pallas kernel."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def value(variable: Any) -> Any:
        return variable.val if hasattr(variable, "val") else values[variable]

    for equation in jaxpr.eqns:
        inputs = [value(variable) for variable in equation.invars]
        inner = [part for part in equation.params.values() if hasattr(part, "eqns")]
        if kernels.is_pallas(equation):
            outputs = jax.jit(kernels.call_of(equation).launch)(*inputs)
            keep(equation.params["name"], inputs, outputs)
        elif inner and any(kernels.launching(getattr(inner[0], "jaxpr", inner[0]))):
            if equation.primitive.name not in _CALLS:
                raise NotImplementedError(
                    f"a kernel inside {equation.primitive.name}: rows are attended in groups, one "
                    "after the other; take fewer rows"
                )
            program = getattr(inner[0], "jaxpr", inner[0])
            outputs = _run(program, getattr(inner[0], "consts", ()), inputs, keep)
        else:
            parameters = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **parameters)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


if __name__ == "__main__":
    main()
