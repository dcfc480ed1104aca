"""The programs that are compiled: every op, by everything that shapes its kernels.

To add one, add a `Case` to `EXTREMES`, or a value to the loops of `_matrix`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp

import pallas_kernels
from gpu_compile import demonstrations, training
from gpu_compile.targets import TRITON_GPUS

KV_HEADS = 2
HEAD_SIZES, GROUPS, BLOCK_SIZES = (16, 32, 64, 128), (1, 4, 8), (16, 32, 64)
DTYPES = {"bfloat16": "bf16", "float32": "f32"}
OPS = {  # arguments and sizes of each
    "power_attention": ("q k v positions", "window"),
    "block_selection": ("q summary_keys positions", "block_size num_selected"),
    "selected_attention": (
        "q k v slots probability positions",
        "block_size selection_gradient",
    ),
    "blossom_attention": (
        "q k v summary_keys gate positions",
        "block_size num_selected window selection_gradient",
    ),
}


class Program(Protocol):
    """What can be compiled; its str is its name."""

    def build(self, device: Any) -> tuple[Callable, tuple]:
        """Returns a function and the ShapeDtypeStructs of its arguments.

        Args:
          device: that it will be compiled for.
        """


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of an op, or its gradient by all arguments that can have one.

    Attributes:
      op: name of a public function of `pallas_kernels`.
      implementation: as in the call.
      direction: "forward" or "backward".
      dtype: of q, k, v and the summary keys.
      head_size: D.
      group: query heads to each of two key/value heads.
      block_size: S, for the ops that have it; likewise those that follow.
      num_selected: N.
      window: W.
      selection_gradient: "none" or "straight_through".
      length: L.
      rows: B.
    """

    op: str
    implementation: str = "triton"
    direction: str = "forward"
    dtype: str = "bfloat16"
    head_size: int = 16
    group: int = 4
    block_size: int = 16
    num_selected: int = 4
    window: int = 8
    selection_gradient: str = "none"
    length: int = 4096
    rows: int = 2

    def __str__(self) -> str:
        parts = [self.op, self.direction, DTYPES[self.dtype], f"D{self.head_size}"]
        parts.append(f"group{self.group}")
        if "block_size" in OPS[self.op][1]:
            parts.append(f"S{self.block_size}")
        for name in ("implementation", "selection_gradient", "num_selected", "window", "length"):
            value = getattr(self, name)
            if value != getattr(Case, name):
                parts.append(value if isinstance(value, str) else f"{name}{value}")
        return "-".join(parts)

    def build(self, device: Any) -> tuple[Callable, tuple]:
        """See `Program`."""
        del device
        arguments, sizes = OPS[self.op]
        call = functools.partial(
            getattr(pallas_kernels, self.op),
            **{size: getattr(self, size) for size in sizes.split()},
            implementation=self.implementation,
        )
        shapes = tuple(self._shapes()[name] for name in arguments.split())
        return (call if self.direction == "forward" else _gradient(call, shapes)), shapes

    def _shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        tokens, d = (self.rows, self.length), self.head_size
        heads = KV_HEADS * self.group
        slots = -(-self.length // self.block_size)
        selected = (*tokens, KV_HEADS, self.num_selected)
        shapes = {
            "q": ((*tokens, heads, d), self.dtype),
            "k": ((*tokens, KV_HEADS, d), self.dtype),
            "v": ((*tokens, KV_HEADS, d), self.dtype),
            "summary_keys": ((self.rows, slots, KV_HEADS, d), self.dtype),
            "gate": ((*tokens, heads, 2), "float32"),
            "slots": (selected, "int32"),
            "probability": (selected, "float32"),
            "positions": (tokens, "int32"),
        }
        return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def _gradient(call: Callable, shapes: tuple) -> Callable:
    floating = [i for i, x in enumerate(shapes) if jnp.issubdtype(x.dtype, jnp.floating)]

    def total(*arrays):
        out = call(*arrays)
        out = out[1] if isinstance(out, tuple) else out  # block_selection's probability
        return out.astype(jnp.float32).sum()

    return jax.grad(total, argnums=floating)


def _matrix() -> Iterator[Case]:
    """Yields every op by all that the dispatcher may be asked for."""
    for dtype, head_size, group in itertools.product(DTYPES, HEAD_SIZES, GROUPS):
        sizes = {"dtype": dtype, "head_size": head_size, "group": group}
        for direction in ("forward", "backward"):
            yield Case("power_attention", direction=direction, **sizes)
        for block_size, op in itertools.product(BLOCK_SIZES, [*OPS][1:]):
            sizes["block_size"] = block_size
            yield Case(op, **sizes)
            yield Case(op, direction="backward", **sizes)
            if "selection_gradient" in OPS[op][1]:
                trained = {"direction": "backward", "selection_gradient": "straight_through"}
                yield Case(op, **trained, **sizes)


_WHOLE = functools.partial(
    Case, "blossom_attention", direction="backward", selection_gradient="straight_through"
)
# Sizes at the ends of what is served, and those that are padded; every kernel in each.
EXTREMES = [
    _WHOLE(dtype=dtype, **sizes)
    for dtype in DTYPES
    for sizes in (
        {"num_selected": 16},
        {"num_selected": 16, "head_size": 128, "group": 8, "block_size": 64},
        {"num_selected": 1, "window": 1},
        {"window": 64},
        {"length": 131072, "rows": 1},
        {"length": 50},
        {"head_size": 24, "group": 3},
    )
]
MATRIX = [*_matrix(), *EXTREMES]


def _subset() -> Iterator[tuple[Case, str]]:
    """Yields some of the matrix, each for one GPU: what runs with the other tests.

    Every kernel for each GPU, dtype and head size, the other sizes in turn; and each op alone.
    """
    turns = itertools.product(TRITON_GPUS, DTYPES, HEAD_SIZES)
    for turn, (gpu, dtype, head_size) in enumerate(turns):
        group, block_size = GROUPS[turn % 3], BLOCK_SIZES[turn // 3 % 3]
        yield _WHOLE(dtype=dtype, head_size=head_size, group=group, block_size=block_size), gpu
    for op, gpu in zip(OPS, TRITON_GPUS, strict=True):
        yield Case(op), gpu
        yield Case(op, direction="backward", dtype="float32", head_size=64), gpu


SUBSET = list(_subset())
MEMORY = [
    make(implementation=implementation, selection_gradient=gradient, length=length)
    for make, lengths in (
        (training.TrainStep, (4096, 65536)),
        (functools.partial(_WHOLE, rows=1), (16384,)),
    )
    for implementation, gradient, length in itertools.product(
        ("xla", "triton"), ("none", "straight_through"), lengths
    )
]
_ALL: list[Program] = [*MATRIX, *MEMORY, demonstrations.GOOD, *demonstrations.BAD]
_ALL += [demonstrations.HANGING]
PROGRAMS = {str(program): program for program in _ALL}
