"""Measures on one GPU what the project claims of GPUs, the most important first.

Writes into a folder, line by line as measured, so that a run cut short keeps what it has:
`machine.json` (device, versions, copy and exponential rates), `attention.jsonl`, `training.jsonl`,
and `attention.png` where matplotlib is installed. What there was no time for is listed as such.

Needs jax, jaxtyping and numpy, and for training flax and optax. JAX_COMPILATION_CACHE_DIR spares a
second run the compiling.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from blossom_jax.errors import UserError
from experiments.benchmark import attention, machine, measure, plot
from experiments.benchmark.contenders import FORWARD, FORWARD_BACKWARD, MEASURED
from experiments.benchmark.sizes import Sizes

LENGTHS = (8192, 2048, 16384, 512, 4096, 1024)  # the most telling first
_FEW = 3  # of them in a short run
_IMPLEMENTATIONS = ("triton", "xla")
_PEERS = ("cudnn", "cudnn:2x64", "cudnn:1x128")
_HEADS: dict[str, Any] = {"heads": 8, "kv_heads": 2, "head_size": 16, "dtype": "bfloat16"}
# Variations of the full run, as (lengths, what differs from _HEADS, peers).
_OTHERS: tuple[tuple[tuple[int, ...], dict[str, Any], tuple[str, ...]], ...] = (
    (LENGTHS[:3], {"heads": 4, "kv_heads": 1, "head_size": 32}, _PEERS[2:]),  # as wide in all
    ((128, 256, 32768, 65536), {}, _PEERS),
    (LENGTHS[:3], {}, ("torch", "xla")),
    (LENGTHS[:3], {"head_size": 32}, ("cudnn",)),
    (LENGTHS[:3], {"head_size": 64}, ("cudnn",)),
    (LENGTHS[:3], {"dtype": "float32"}, ("xla",)),
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One comparison.

    Attributes:
      describe: What its records bear, for when it does not run.
      report: Where they are added.
      run: Takes the measurements.
    """

    describe: dict[str, Any]
    report: measure.Report
    run: Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    measure.add_arguments(parser)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--few", dest="full", action="store_false", help="three lengths, eight heads of 16, bf16"
    )
    amount.add_argument("--full", action="store_true", help="all lengths, head sizes and dtypes")
    add("--output", metavar="DIR", type=pathlib.Path, required=True, help="folder of the results")
    add("--seconds", type=float, default=float("inf"), help="start no measurement after so many")
    add("--tokens", type=measure.positive, default=2**20, help="of one attention call")
    add("--lengths", type=measure.positives, help="instead of those of the run, in this order")
    add("--training-tokens", type=measure.positive, default=2**16, help="of a training batch")
    add(
        "--training-lengths",
        type=measure.positives,
        default=(8192, 2048, 16384),
        help="in this order",
    )
    add("--items", type=measure.positive, default=10_000, help="catalogue that is trained on")


def run(arguments: argparse.Namespace) -> None:
    """Takes the measurements in order until the time is spent, then prints tables and a plot."""
    began = time.monotonic()
    _check(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    reports = {
        name: measure.Report(name, arguments.output / f"{name}.jsonl", arguments.commit)
        for name in ("attention", "training")
    }
    ceilings = machine.measure_ceilings(arguments.rounds)
    about = measure.provenance(arguments.commit) | ceilings._asdict() | _memory()
    (arguments.output / "machine.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about), flush=True)
    for task in _plan(arguments, reports, ceilings):
        attempt(task, time.monotonic() - began < arguments.seconds, arguments.seconds)
    _finish(reports, arguments.output)


def _check(arguments: argparse.Namespace) -> None:
    wanted = [("--tokens", arguments.tokens, arguments.lengths or ())]
    wanted.append(("--training-tokens", arguments.training_tokens, arguments.training_lengths))
    for flag, tokens, lengths in wanted:
        for length in lengths:
            if tokens % length:
                raise UserError(f"{flag}={tokens} is no whole number of rows of {length=}")


def _memory() -> dict[str, Any]:
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"memory_bytes_limit": stats.get("bytes_limit")}


def attempt(task: Task, in_time: bool, seconds: float) -> None:
    """Runs a task, or reports why it did not run; an error does not keep the next from running.

    Args:
      task: What to run.
      in_time: Whether there is time left.
      seconds: That there were, for the message.
    """
    if not in_time:
        task.report.add(**task.describe, seconds=None, error=f"not begun within {seconds:.0f} s")
        return
    try:
        task.run()
    except Exception as error:
        task.report.add(**task.describe, seconds=None, error=measure.reason(error))


def _plan(
    arguments: argparse.Namespace,
    reports: Mapping[str, measure.Report],
    ceilings: machine.Ceilings,
) -> Iterator[Task]:
    """Yields tasks, the most important first."""
    lengths = arguments.lengths or LENGTHS[: len(LENGTHS) if arguments.full else _FEW]
    task = functools.partial(_attention, arguments, reports["attention"], ceilings)
    for length in lengths:
        yield task(length, _HEADS, _PEERS, FORWARD_BACKWARD)
    for length in arguments.training_lengths:
        yield _training(arguments, reports["training"], length)
    for length in lengths:
        yield task(length, _HEADS, _PEERS, FORWARD)
    for others, changes, peers in _OTHERS if arguments.full else ():
        for length in arguments.lengths or others:
            for measured in reversed(MEASURED):
                yield task(length, _HEADS | changes, peers, measured)


def _attention(arguments, report, ceilings, length, heads, peers, measured) -> Task:
    size = Sizes(max(1, arguments.tokens // length), length, **heads)
    chosen = attention.choose(_IMPLEMENTATIONS, peers)
    describe = {"attention": "all", "measured": measured} | dataclasses.asdict(size)
    describe["peers"] = peers
    return Task(
        describe,
        report,
        lambda: attention.compare(chosen, size, measured, arguments.rounds, report, ceilings),
    )


def _training(arguments, report, length) -> Task:
    describe = {"model": "all", "length": length, "tokens": arguments.training_tokens}

    def measure_training():
        # Here, so that attention is measured where flax is not installed.
        from experiments.benchmark import training

        work = training.Workload(
            length, arguments.training_tokens, num_items=arguments.items, **_HEADS
        )
        training.compare(training.contenders(), work, arguments.rounds, report)

    return Task(describe, report, measure_training)


def _finish(reports: Mapping[str, measure.Report], folder: pathlib.Path) -> None:
    attention.print_table(reports["attention"].records)
    if trained := reports["training"].records:
        _print_training(trained)
    main = {key: _HEADS[key] for key in ("head_size", "dtype")}
    drawn = [r for r in reports["attention"].records if main.items() <= r.items()]
    try:
        plot.draw([r for r in drawn if r["attention"] != "all"], str(folder / "attention.png"))
    except UserError as error:
        print(f"no plot: {error}")


def _print_training(records: list[dict]) -> None:
    if any(record["seconds"] for record in records):
        from experiments.benchmark import training

        training.print_table(records)
    else:
        measure.print_failures("model", records)
