"""Takes the Pallas kernels out of a program, and each down to Triton's intermediate language.

The only file that knows what jax does not promise: the names inside a traced `pallas_call`, and
inside the custom call that it becomes.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src.lib.mlir import ir
from jax._src.pallas.triton import lowering as triton_lowering


@dataclasses.dataclass(frozen=True)
class PallasCall:
    """A kernel where a program launches it.

    Attributes:
      name: as given to `pallas_call`.
      launch: does it again.
      arguments: ShapeDtypeStructs.
      grid: programs along each of its axes.
    """

    name: str
    launch: Callable
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    grid: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TritonKernel:
    """A kernel in Triton's intermediate language.

    Attributes:
      text: of its module, without the places in the source that it came from.
      launch: size of the grid, warps and stages.
    """

    text: str
    launch: str

    @property
    def products(self) -> int:
        """Products of two tiles in it."""
        return self.text.count(" tt.dot ")

    @property
    def digest(self) -> str:
        """Equal for equal kernels."""
        return hashlib.sha256(f"{self.launch}\n{self.text}".encode()).hexdigest()


def pallas_calls(fn: Callable, arguments: tuple) -> list[PallasCall]:
    """Traces a function and returns the Pallas kernels in it, in the order of their launch.

    Args:
      fn: what `jax.jit` takes, or has made.
      arguments: trees of ShapeDtypeStructs.
    """
    return [call_of(equation) for equation in launching(jax.make_jaxpr(fn)(*arguments).jaxpr)]


def launching(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of a traced program that launch a Pallas kernel, in their order."""
    for equation in jaxpr.eqns:
        if is_pallas(equation):
            yield equation
            continue
        for inner in _jaxprs(list(equation.params.values())):
            yield from launching(inner)


def is_pallas(equation: Any) -> bool:
    """Says whether an equation of a traced program launches a Pallas kernel."""
    return equation.primitive.name == "pallas_call"


def call_of(equation: Any) -> PallasCall:
    """Returns the kernel that an equation launches."""

    def launch(*arrays):
        return equation.primitive.bind(*arrays, **equation.params)

    shapes = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in equation.invars]
    grid = tuple(equation.params["grid_mapping"].grid)
    return PallasCall(equation.params["name"], launch, tuple(shapes), grid)


def _jaxprs(value: Any) -> Iterator[Any]:
    """Yields the programs that stand in a parameter: of a jit, a loop, a branch, a custom_vjp."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _jaxprs(inner)
    elif hasattr(value, "eqns"):
        yield getattr(value, "jaxpr", value)


def lowering_for(device: Any) -> contextlib.AbstractContextManager:
    """Tells jax 0.11 and later which GPU to lower Triton for; 0.10 neither asks nor can be told.

    Args:
      device: the one that is compiled for.
    """
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    kind = jax.sharding.AbstractDevice(device.device_kind, None, "cuda")
    try:
        mesh = jax.sharding.AbstractMesh((), (), abstract_device=kind)
    except TypeError:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def triton_kernel(lowered: jax.stages.Lowered) -> TritonKernel:
    """Reads the one Triton kernel of a lowered program, and has Triton's verifier look at it.

    Args:
      lowered: of a `PallasCall`.

    Raises:
      ValueError: the verifier's message.
    """
    (config,) = _triton_configs(lowered.compiler_ir("stablehlo").operation)
    launch = sorted(f"{entry.name}={entry.attr}" for entry in config if entry.name != "ir")
    with triton_lowering._new_ir_context():
        try:
            module = ir.Module.parse(ir.StringAttr(config["ir"]).value_bytes).operation
            module.verify()
        except ir.MLIRError as error:
            raise ValueError(f"Triton's verifier: {error}") from error
        return TritonKernel(str(module.get_asm()), " ".join(launch))


def _triton_configs(op: Any) -> Iterator[Any]:
    op = getattr(op, "operation", op)
    if op.name == "stablehlo.custom_call" and "triton" in str(op.attributes["call_target_name"]):
        yield ir.DictAttr(op.attributes["mhlo.backend_config"])
    for region in op.regions:
        for block in region:
            for inner in block:
                yield from _triton_configs(inner)
