"""Times each kernel of Blossom attention, forward and backward, on one GPU.

Prints milliseconds a call by kernel, as jax's profiler sees them within the whole program; what XLA
makes itself, sorts included, is "others". Shapes, and inputs that take turns, are those of the
attention benchmark. This is what a change of a kernel is judged by.
"""

import argparse
import collections
import dataclasses
import gzip
import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax

from blossom_jax.errors import UserError
from experiments import _cli
from experiments.benchmark import contenders, measure, sizes
from experiments.benchmark.sizes import Draws

KERNELS = (
    "selection_forward",
    "list_begins",
    "blocks_forward",
    "near_forward",
    "blocks_backward",
    "add_runs",
    "near_queries",
    "near_keys",
    "selection_queries",
    "selection_keys",
)
_CALLS = 6  # that are profiled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    measure.add_arguments(parser)
    parser.add_argument(
        "--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here"
    )
    sizes.add_arguments(parser, lengths=(2048, 16384))


def run(arguments: argparse.Namespace) -> None:
    """Measures everything, then prints a table."""
    if jax.default_backend() != "gpu":
        raise UserError("kernels needs a GPU: nowhere else does Triton run")
    report = measure.Report("kernels", arguments.json, arguments.commit)
    prepare = contenders.blossom("triton")
    for size in sizes.read(arguments):
        program = prepare(size, contenders.FORWARD_BACKWARD, Draws())
        seconds = measure.medians({"all": program.call}, arguments.rounds)["all"]
        times = kernel_milliseconds(program.call)
        report.add(**dataclasses.asdict(size), seconds=seconds, milliseconds=times)
    print_table(report.records)


def kernel_milliseconds(call: Callable[[], Any]) -> dict[str, float]:
    """Profiles some calls.

    Args:
      call: Runs a compiled program; returns arrays.

    Returns:
      Milliseconds that the kernels of a call took, by name; see `by_kernel`.
    """
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_CALLS):
                last = call()
            jax.block_until_ready(last)
        (trace,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return {name: total / _CALLS for name, total in by_kernel(events).items()}


def by_kernel(events: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Adds up what ran on the streams of a GPU.

    Args:
      events: Of a trace in Chrome's format, as jax's profiler writes it.

    Returns:
      Milliseconds by name, for `KERNELS` in their order as far as they ran, then "others".
    """
    named = [event for event in events if event.get("ph") == "M"]
    gpus = {
        event["pid"]
        for event in named
        if event["name"] == "process_name" and "GPU" in event["args"]["name"]
    }
    streams = {
        (event["pid"], event["tid"])
        for event in named
        if event["name"] == "thread_name" and event["args"]["name"].startswith("Stream")
    }
    total: collections.Counter[str] = collections.Counter()
    for event in events:
        on_stream = event.get("pid") in gpus and (event["pid"], event.get("tid")) in streams
        if event.get("ph") == "X" and on_stream:
            name = event["name"] if event["name"] in KERNELS else "others"
            total[name] += event["dur"] / 1e3
    return {name: total[name] for name in (*KERNELS, "others") if name in total}


def print_table(records: Sequence[dict[str, Any]]) -> None:
    """Prints a row for each size, a column for each kernel that ran, and the whole."""
    ran = {name for record in records for name in record["milliseconds"]}
    names = [name for name in (*KERNELS, "others") if name in ran]
    rows = (
        (
            f"{record['rows']} x {record['length']:,}",
            *(f"{record['milliseconds'].get(name, 0):.3f}" for name in names),
            f"{record['seconds'] * 1e3:.3f}",
        )
        for record in records
    )
    measure.print_table(("rows x length", *names, "ms in all"), rows)
