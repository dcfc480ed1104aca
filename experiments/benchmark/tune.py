"""Searches the tiles of the GPU kernels, and writes the fastest to a data file.

Each candidate must first give what the untuned tiles give; what fails to compile, or gives
something else, is listed with the reason and never timed. Shapes are those of the attention
benchmark. The file names the device, the versions and the commit, and for each kernel and shape the
median seconds of the untuned tiles and of the best.
"""

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from blossom_jax.errors import UserError
from experiments import _cli
from experiments.benchmark import contenders, measure, sizes
from experiments.benchmark.sizes import Draws, Sizes
from pallas_kernels import triton_tools, tuned
from pallas_kernels.block_selection.config import SelectionTiles
from pallas_kernels.power_attention.config import NearTiles
from pallas_kernels.selected_attention.config import BlockTiles


@dataclasses.dataclass(frozen=True)
class Search:
    """One kernel at one shape.

    Attributes:
      kernel: Its name.
      shape: What the tiles may depend on, as it will be looked up.
      heuristics: Frozen dataclass of tiles that serves where nothing was tuned.
      candidates: Others, of the same class.
      launch: Makes of tiles a call that runs the kernel, always on the same inputs.
      tolerance: Largest relative Frobenius error against the output with `heuristics`.
    """

    kernel: str
    shape: dict[str, Any]
    heuristics: Any
    candidates: Sequence[Any]
    launch: Callable[[Any], Callable[[], Any]]
    tolerance: float


def _near_queries() -> list[NearTiles]:
    return [NearTiles(rows, warps) for rows in (16, 32) for warps in (1, 2, 4)]


def _near_keys() -> list[NearTiles]:
    return [NearTiles(rows, warps) for rows in (16, 32, 64) for warps in (1, 2, 4)]


def _blocks() -> list[BlockTiles]:
    tiles = itertools.product((32, 64, 128), (1, 2, 4), (1, 2))
    return [BlockTiles(rows, warps, stages) for rows, warps, stages in tiles]


def _selection() -> list[SelectionTiles]:
    tiles = itertools.product((16, 32), (16, 32, 64))
    return [SelectionTiles(queries, slots, queries // 16) for queries, slots in tiles]


# Candidates, and what the heuristics choose for a block, a head size and a dtype.
_KERNELS: dict[str, tuple[Callable[[], list], Callable[..., Any]]] = {
    "selection_forward": (
        _selection,
        lambda _, *shape: SelectionTiles.heuristics(*shape),
    ),
    "blocks_forward": (_blocks, BlockTiles.forward),
    "near_forward": (_near_queries, lambda _, *shape: NearTiles.by_queries(*shape)),
    "blocks_backward": (_blocks, BlockTiles.backward),
    "near_queries": (_near_queries, lambda _, *shape: NearTiles.by_queries(*shape)),
    "near_keys": (_near_keys, lambda _, *shape: NearTiles.by_keys(*shape)),
}


def kernel_search(kernel: str, size: Sizes, implementation: str = "triton") -> Search:
    """Searches one kernel's tiles by timing attention, forward and backward, around it."""
    draws, prepare = Draws(), contenders.blossom(implementation)
    q, k, _, _ = draws(size, 0)
    shape = triton_tools.shape(q, k, size.block_size)

    def launch(tiles):
        with tuned.force(kernel, tiles):
            return prepare(size, contenders.FORWARD_BACKWARD, draws).call

    candidates, heuristics = _KERNELS[kernel]
    keys = triton_tools.padded_head(size.block_size)
    untuned = heuristics(keys, shape["head_size"], q.dtype)
    return Search(kernel, shape, untuned, candidates(), launch, tolerance=1e-2)


# By kernel: what makes its search at some sizes.
SEARCHES: dict[str, Callable[[Sizes], Search]] = {
    kernel: functools.partial(kernel_search, kernel) for kernel in _KERNELS
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    measure.add_arguments(parser)
    sizes.add_arguments(parser, lengths=(512, 2048, 8192))
    parser.add_argument(
        "--kernels",
        type=measure.names(SEARCHES),
        default=tuple(SEARCHES),
        help=f"of {', '.join(SEARCHES)}; all by default",
    )
    parser.add_argument("--output", metavar="FILE.json", required=True, type=_cli.writable)


def run(arguments: argparse.Namespace) -> None:
    """Searches every kernel at every size, and writes the file anew after each."""
    if jax.default_backend() != "gpu":
        raise UserError("tune needs a GPU: tiles say nothing on another device")
    tiles: list[dict[str, Any]] = []
    found = {"provenance": measure.provenance(arguments.commit), "tiles": tiles}
    for size in sizes.read(arguments):
        for kernel in arguments.kernels:
            tiles.append(search(SEARCHES[kernel](size), arguments.rounds))
            arguments.output.write_text(json.dumps(found, indent=1) + "\n")


def search(task: Search, rounds: int) -> dict[str, Any]:
    """Times every candidate that is right, prints a table, and returns the entry of the data file.

    Args:
      task: Kernel, shape and candidates.
      rounds: As in `measure.medians`.

    Raises:
      Exception: Whatever the untuned tiles raise: without them there is nothing to compare with.
    """
    expected = jax.block_until_ready(task.launch(task.heuristics)())
    calls, failed = {"0": task.launch(task.heuristics)}, {}
    tiles = {"0": task.heuristics}
    others = [candidate for candidate in task.candidates if candidate != task.heuristics]
    for n, candidate in enumerate(others, 1):
        tiles[str(n)] = candidate
        try:
            call = task.launch(candidate)
            error = relative_error(call(), expected)
        except Exception as problem:  # too much shared memory, say: the next may do
            failed[str(n)] = measure.reason(problem)
            continue
        if error <= task.tolerance:  # NaN is not
            calls[str(n)] = call
        else:
            failed[str(n)] = f"wrong: relative error {error:.1e}"
    seconds = measure.medians(calls, rounds, failed)
    if "0" not in seconds:
        raise RuntimeError(f"{task.kernel}: the untuned tiles failed: {failed['0']}")
    _print(task, tiles, seconds, failed)
    best = min(seconds, key=seconds.__getitem__)
    return {
        "kernel": task.kernel,
        "shape": task.shape,
        "tiles": dataclasses.asdict(tiles[best]),
        "seconds": seconds[best],
        "heuristics": dataclasses.asdict(task.heuristics),
        "heuristics_seconds": seconds["0"],
        "timed": len(seconds),
        "failed": len(failed),
    }


def relative_error(found: Any, expected: Any) -> float:
    """Returns the largest relative Frobenius error among the arrays of two trees."""

    def error(a, b):
        a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
        norm = jnp.linalg.norm(b.ravel())
        return float(jnp.linalg.norm((a - b).ravel()) / jnp.where(norm > 0, norm, 1))

    errors = jax.tree.leaves(jax.tree.map(error, found, expected))
    return max(errors, key=lambda x: (x != x, x))


def _print(task: Search, tiles, seconds, failed) -> None:
    print(f"\n{task.kernel} at {task.shape}")
    order = sorted(seconds, key=seconds.__getitem__) + list(failed)

    def row(name):
        values = dataclasses.asdict(tiles[name]).items()
        took = f"{seconds[name] * 1e3:,.3f} ms" if name in seconds else failed[name]
        ratio = f"{seconds['0'] / seconds[name]:.2f}x" if name in seconds else ""
        untuned = " (untuned)" if name == "0" else ""
        return ", ".join(f"{key}={value}" for key, value in values) + untuned, ratio, took

    measure.print_table(("tiles", "speedup", "took"), map(row, order))
