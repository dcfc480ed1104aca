"""One call of an op, or its gradient, as a program to compile."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels import triton_limits

KV_HEADS = 2
_NAMED_IF_UNUSUAL = ("selection_gradient", "num_selected", "window", "length", "rows")
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
        for name in ("implementation", *_NAMED_IF_UNUSUAL):
            value = getattr(self, name)
            if value != getattr(Case, name):
                parts.append(value if isinstance(value, str) else f"{name}{value}")
        return "-".join(parts)

    @property
    def shared_memory(self) -> int:
        """Bytes of a program that the dispatcher reckons with, 0 for ops that walk no blocks."""
        if "block_size" not in OPS[self.op][1] or self.op == "block_selection":
            return 0
        return triton_limits.shared_memory(self._shapes()["q"], self.block_size)

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
