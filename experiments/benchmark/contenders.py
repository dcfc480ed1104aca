"""What the attention benchmark compares: Blossom by implementation, dense attention by library.

A contender prepares, for some sizes, a program that runs on inputs drawn for all of them. One that
cannot run here raises NotImplementedError with the reason.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from blossom_jax import memory
from experiments.benchmark import floor, sizes, torch_peer
from experiments.benchmark.program import Program
from experiments.benchmark.sizes import Draws, Sizes
from pallas_kernels import blossom_attention

FORWARD, FORWARD_BACKWARD = MEASURED = ("forward", "forward_backward")
IMPLEMENTATIONS = ("auto", "triton", "xla", "reference")
LIBRARIES = ("xla", "cudnn", "torch")

Contender = Callable[[Sizes, str, Draws], Program]


class _Inputs(NamedTuple):
    """Arrays of one call: those that get a gradient, and those that get none."""

    trained: tuple[Array, ...]
    fixed: tuple[Array, ...]


def blossom(implementation: str) -> Contender:
    """Returns Blossom attention by one implementation, or by the dispatcher's choice for "auto"."""

    def prepare(size: Sizes, measured: str, draws: Draws) -> Program:
        if implementation == "triton":
            _check_gpu("Triton")

        def attend(q, k, v, gate, *rest):
            summary_keys, positions = rest
            return blossom_attention(
                q,
                k,
                v,
                summary_keys,
                gate,
                positions,
                block_size=size.block_size,
                num_selected=size.num_selected,
                window=size.window,
                selection_gradient=size.selection_gradient,
                implementation=None if implementation == "auto" else implementation,
            )

        make = functools.partial(_blossom_inputs, size)
        count = floor.blossom_exponentials(size)
        return _jax_program(attend, make, size, measured, draws, count)

    return prepare


def _blossom_inputs(size: Sizes, q: Array, k: Array, v: Array) -> _Inputs:
    """Adds a gate, positions, and the mean of a block for what the compressor learns."""
    slots = -(-size.length // size.block_size)
    whole = jnp.pad(k, ((0, 0), (0, slots * size.block_size - size.length), (0, 0), (0, 0)))
    blocks = whole.reshape(size.rows, slots, size.block_size, *k.shape[2:])
    summary_keys = blocks.mean(2, dtype=jnp.float32).astype(k.dtype)
    gate = jax.nn.sigmoid(jnp.stack([q[..., 0], q[..., 1]], -1))
    positions = jnp.tile(jnp.arange(size.length, dtype=jnp.int32), (size.rows, 1))
    if size.selection_gradient == "none":
        return _Inputs((q, k, v, gate), (summary_keys, positions))
    return _Inputs((q, k, v, gate, summary_keys), (positions,))


def dense(library: str, split: tuple[int, int] | None = None) -> Contender:
    """Returns dense causal attention.

    Args:
      library: One of `LIBRARIES`.
      split: Heads and head size where they are not Blossom's own.
    """

    def prepare(size: Sizes, measured: str, draws: Draws) -> Program:
        if split:
            size = size.split(*split)
        if library == "torch":
            return torch_peer.prepare(size, measured, draws)
        if library == "cudnn":
            _check_gpu("cuDNN")

        def attend(q, k, v):
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=library)

        def make(q, k, v):
            return _Inputs((q, k, v), ())

        return _jax_program(attend, make, size, measured, draws, floor.dense_exponentials(size))

    return prepare


def _check_gpu(who: str) -> None:
    device = jax.devices()[0]
    if device.platform != "gpu":
        raise NotImplementedError(f"{who} needs an NVIDIA GPU, this is {device.device_kind}")


def _jax_program(
    attend: Callable[..., Array],
    make: Callable[..., _Inputs],
    size: Sizes,
    measured: str,
    draws: Draws,
    exponentials: float,
) -> Program:
    """Compiles attention, or its output with the gradients of `trained`, for rotating inputs."""

    def forward(trained, fixed):
        return attend(*trained, *fixed)

    def forward_backward(trained, fixed, cotangent):
        # No loss: its sum would read the output once more.
        out, pull = jax.vjp(lambda *arrays: attend(*arrays, *fixed), *trained)
        return out, pull(cotangent)

    both = measured == FORWARD_BACKWARD
    function = forward_backward if both else forward
    rotated: list[tuple[Any, ...]] = []
    for seed in range(sizes.num_sets(size)):
        *qkv, cotangent = draws(size, seed)
        rotated.append((*jax.jit(make)(*qkv), cotangent) if both else jax.jit(make)(*qkv))
    compiled = jax.jit(function).lower(*rotated[0]).compile()
    out, gradients = jax.eval_shape(function, *rotated[0]) if both else (rotated[0][0][0], None)
    turn = itertools.cycle(rotated)
    return Program(
        call=lambda: compiled(*next(turn)),
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        needed_bytes=memory.program_bytes(compiled),
        moved_bytes=floor.moved_bytes(rotated[0][:2], out, gradients),
        exponentials=exponentials * (2 if both else 1),
        sets=len(rotated),
    )
