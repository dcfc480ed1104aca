"""What `loss` and `step` share: sizes that grow one at a time, and what is told of each."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from blossom_jax import memory
from experiments import _cli
from experiments.benchmark import measure, plot

PLAIN = "plain"  # all logits at once


class Program(NamedTuple):
    """A contender made ready to run at some sizes.

    Attributes:
      call: Runs it; returns what can be waited for.
      compiled: What XLA made of it.
    """

    call: Callable[[], Any]
    compiled: jax.stages.Compiled


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
      items: Size of the catalogue.
      rows: Histories in a batch.
      length: Events of each; every one has a target.
      hidden_size: M.
      dtype: Of activations.
      num_negatives: K.
    """

    items: int
    rows: int
    length: int
    hidden_size: int
    dtype: str
    num_negatives: int

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.rows * self.length


Contender = Callable[[Sizes], Program]


def add_arguments(parser: argparse.ArgumentParser, *, lengths: tuple[int, ...]) -> None:
    """Adds the options of both benchmarks."""
    add = parser.add_argument
    measure.add_arguments(parser)
    add(
        "--cpu-time",
        action="store_true",
        help="count CPU seconds, which others' work on the machine changes less",
    )
    add("--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here")
    add(
        "--plot",
        metavar="FILE",
        type=_cli.writable,
        help="draw time and memory against both sizes (.svg, .png, .pdf)",
    )
    add(
        "--items",
        type=measure.positives,
        default=(10**4, 10**5, 10**6),
        help="catalogues, at the first length",
    )
    add("--lengths", type=measure.positives, default=lengths, help="at the first catalogue")
    add("--rows", type=measure.positive, default=8, help="histories in a batch")
    add("--hidden-size", type=measure.positive, default=64)
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--num-negatives", type=measure.positive, default=256, help="of losses by samples")


def read(arguments: argparse.Namespace) -> list[Sizes]:
    """Returns the sizes that the options ask for: first every catalogue, then the other lengths."""
    fields = ("rows", "hidden_size", "dtype", "num_negatives")
    rest = {name: getattr(arguments, name) for name in fields}
    items, lengths = arguments.items, arguments.lengths
    grown = [(each, lengths[0]) for each in items] + [(items[0], each) for each in lengths[1:]]
    return [Sizes(items=i, length=length, **rest) for i, length in grown]


def run(
    benchmark: str, chosen: Mapping[str, Contender], arguments: argparse.Namespace, title: str
) -> None:
    """Measures every contender at every size, prints a table and draws a plot.

    Args:
      benchmark: Its name.
      chosen: Contenders by name.
      arguments: Of the command line.
      title: Of the plot.
    """
    report = measure.Report(benchmark, arguments.json, arguments.commit)
    for sizes in read(arguments):
        compare(benchmark, chosen, sizes, arguments.rounds, report, cpu_time=arguments.cpu_time)
    print_table(benchmark, report.records)
    if arguments.plot:
        draw(benchmark, report.records, title, arguments.plot)


def compare(
    kind: str,
    chosen: Mapping[str, Contender],
    sizes: Sizes,
    rounds: int,
    report: measure.Report,
    *,
    cpu_time: bool = False,
) -> None:
    """Measures all contenders at one size, and reports each.

    `program_bytes` is all that a program holds at once by the compiler's plan, and
    `temporary_bytes` is what of it is neither input nor output. `logits_bytes` is what all logits
    take in the dtype of the activations. `speedup` and `memory_ratio` say by other contender how
    many times as much time and program memory that one takes. `error` says why there are no
    seconds.

    Args:
      kind: Field of the contender's name.
      chosen: Contenders by name.
      sizes: Of the call.
      rounds: As in `measure.medians`.
      report: Where measurements are added.
      cpu_time: As in `measure.medians`.
    """
    programs, plans, failed = _prepare(chosen, sizes)
    held = {name: memory.program_bytes(plan) for name, plan in plans.items()}
    calls = {name: program.call for name, program in programs.items()}
    seconds = measure.medians(calls, rounds, failed, cpu_time=cpu_time)
    for name in chosen:
        plan = plans.get(name)
        report.add(
            **{kind: name},
            **dataclasses.asdict(sizes),
            cpu_time=cpu_time,
            seconds=seconds.get(name),
            speedup=measure.times_of_others(name, seconds, chosen),
            program_bytes=held.get(name),
            temporary_bytes=plan and plan.memory_analysis().temp_size_in_bytes,
            memory_ratio=measure.times_of_others(name, held, chosen),
            logits_bytes=sizes.tokens * sizes.items * jnp.dtype(sizes.dtype).itemsize,
            error=failed.get(name),
        )


def _prepare(
    chosen: Mapping[str, Contender], sizes: Sizes
) -> tuple[dict[str, Program], dict[str, jax.stages.Compiled], dict[str, str]]:
    """Prepares contenders in turn; what would not fit beside those before is let go.

    Returns:
      Those that can run, what XLA compiled for all that it could, and why others cannot run.
    """
    programs, plans, failed = {}, {}, {}
    room = _Room()
    for name, prepare in chosen.items():
        try:
            program = prepare(sizes)
        except Exception as error:  # the others go on
            failed[name] = measure.reason(error)
            continue
        plans[name] = program.compiled
        if refusal := room.refusal(program.compiled):
            failed[name] = refusal
        else:
            programs[name] = program
        del program  # what is refused must not stay while the next is prepared
    return programs, plans, failed


class _Room:
    """What memory is left by programs of which all keep their inputs and outputs, and one runs."""

    def __init__(self):
        self._limit = memory.available_bytes(jax.local_devices())
        if jax.default_backend() == "cpu":
            self._limit //= 2  # a host that runs out kills the process; a GPU says so
        self._kept = self._temporary = 0

    def refusal(self, compiled: jax.stages.Compiled) -> str:
        """Says why a program does not fit; admits it otherwise, and returns nothing."""
        needed = memory.program_bytes(compiled)
        temporary = compiled.memory_analysis().temp_size_in_bytes
        kept = self._kept + needed - temporary
        if kept + max(self._temporary, temporary) > self._limit:
            beside = f" beside {self._kept:,} of the others" if self._kept else ""
            return f"too large: needs {needed:,} bytes{beside}, the limit is {self._limit:,}"
        self._kept, self._temporary = kept, max(self._temporary, temporary)
        return ""


def print_table(kind: str, records: list[dict]) -> None:
    """Prints what was measured, then what was not and why."""

    def row(record):
        temporary = record["temporary_bytes"]
        return (
            record[kind],
            f"{record['items']:,}",
            f"{record['rows']} x {record['length']:,}",
            f"{record['seconds'] * 1e3:,.1f}",
            measure.shown_ratio(record["speedup"].get(PLAIN)),
            f"{record['program_bytes'] / 2**20:,.1f}",
            f"{temporary / 2**20:,.1f}",
            f"{temporary / record['logits_bytes']:.2%}",
        )

    header = [kind, "items", "rows x length", "ms", f"vs {PLAIN}"]
    header += ["MiB", "temporary MiB", "of all logits"]
    measure.print_table(header, map(row, (r for r in records if r["seconds"])))
    for record in records:
        if record["error"]:
            sizes = f"{record['items']:,} items, {record['rows']} x {record['length']:,}"
            print(f"{record[kind]} at {sizes}: {record['error']}")


def draw(kind: str, records: list[dict], title: str, path: str) -> None:
    """Draws time and memory against the catalogue and, where it varies, against length.

    Args:
      kind: Field of the contender's name.
      records: From `compare`.
      title: Begins the plot's title.
      path: File to write; its suffix names the format.

    Raises:
      UserError: As in `plot.draw`.
    """
    first = records[0]
    panels = []
    for x, fixed, label in (
        ("items", "length", "items of the catalogue, rows of {length:,} events"),
        ("length", "items", "history length, events, of {items:,} items"),
    ):
        some = [record for record in records if record[fixed] == first[fixed]]
        if len({record[x] for record in some}) > 1 or x == "items":
            against = (some, x, label.format(**first), 10 if x == "items" else 2)
            panels += [
                plot.Panel(*against, "seconds", 1e-3, "Time, ms"),
                plot.Panel(*against, "temporary_bytes", 2**20, "Temporary memory, MiB"),
            ]
    rows = f"{first['rows']} row" + ("s" if first["rows"] > 1 else "")
    about = f"{rows}, hidden size {first['hidden_size']}, {first['dtype']}"
    is_ours = {record[kind]: record[kind] != PLAIN for record in records}
    plot.draw_panels(panels, kind, is_ours, _label, f"{title}: {about}", path)


def _label(name: str) -> str:
    return "all logits at once" if name == PLAIN else name.replace("_", " ")
