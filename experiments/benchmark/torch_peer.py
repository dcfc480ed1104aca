"""PyTorch's scaled_dot_product_attention, where PyTorch is installed and sees the same device."""

import itertools
from typing import Any

import jax

from experiments.benchmark import floor, sizes
from experiments.benchmark.program import Program
from experiments.benchmark.sizes import Draws, Sizes


class _Pending:
    """Lets `jax.block_until_ready` wait for what PyTorch has enqueued."""

    def __init__(self, wait, *outputs):
        self._wait, self._outputs = wait, outputs

    def block_until_ready(self):
        self._wait()
        return self


def prepare(size: Sizes, measured: str, draws: Draws) -> Program:
    """Returns the program on arrays shared with JAX, not copied.

    Args:
      size: Of the call.
      measured: "forward" or "forward_backward".
      draws: Where inputs come from.

    Raises:
      NotImplementedError: PyTorch is not there, or does not see the GPU.
    """
    torch = _import()
    on_gpu = jax.devices()[0].platform == "gpu"
    both = measured == "forward_backward"
    rotated = []
    for seed in range(sizes.num_sets(size)):
        # [B, L, heads, D] -> [B, heads, L, D], as a view
        tensors = [torch.from_dlpack(x).detach().transpose(1, 2) for x in draws(size, seed)]
        rotated.append(([x.requires_grad_(both) for x in tensors[:3]], tensors[3]))
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    turn = itertools.cycle(rotated)

    def call():
        (q, k, v), cotangent = next(turn)
        attend = torch.nn.functional.scaled_dot_product_attention
        with torch.set_grad_enabled(both):
            out = attend(q, k, v, is_causal=True, enable_gqa=size.heads != size.kv_heads)
        gradients = torch.autograd.grad(out, (q, k, v), cotangent) if both else ()
        return _Pending(wait, out, *gradients)

    q, k, v, _ = draws(size, 0)
    return Program(
        call=call,
        temporary_bytes=_temporary_bytes(torch, call) if on_gpu else None,
        needed_bytes=None,
        moved_bytes=floor.moved_bytes((q, k, v), q, (q, k, v) if both else None),
        exponentials=floor.dense_exponentials(size) * (2 if both else 1),
        sets=len(rotated),
    )


def _import() -> Any:
    try:
        import torch
    except ImportError:
        raise NotImplementedError("PyTorch is not installed") from None
    if jax.devices()[0].platform == "gpu" and not torch.cuda.is_available():
        raise NotImplementedError("PyTorch is installed, but sees no GPU")
    return torch


def _temporary_bytes(torch, call) -> int:
    """Returns what a call allocates at its peak besides what it returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pending = call()
    pending.block_until_ready()
    returned = torch.cuda.memory_allocated() - before
    return torch.cuda.max_memory_allocated() - before - returned
