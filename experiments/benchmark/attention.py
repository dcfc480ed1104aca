"""Times Blossom attention against dense attention, forward and backward, at several lengths.

All run on the same random queries, keys and values, one history to a row; on a GPU several sets of
inputs take turns, so that none is found in the cache. Temporary bytes are those that the compiled
program asks for besides its inputs and outputs. What cannot run here, or does not fit, is reported
with the reason. The fraction of the floor is that of `floor.py`.

Peers are dense causal attention of a library, `xla`, `cudnn` or `torch`, with Blossom's own heads
or, as in `cudnn:2x64`, with 2 heads of 64. PyTorch's temporary bytes are known on a GPU only.

Not measured here are the layers around the attention: projections, and the compression of keys.
"""

import argparse
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax

from blossom_jax import memory
from experiments import _cli
from experiments.benchmark import contenders, floor, machine, measure, plot, sizes
from experiments.benchmark.contenders import MEASURED, Contender
from experiments.benchmark.program import Program
from experiments.benchmark.sizes import Draws, Sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    measure.add_arguments(parser)
    add("--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here")
    add(
        "--plot",
        metavar="FILE",
        type=_cli.writable,
        help="draw seconds and bytes against length (.svg, .png, .pdf)",
    )
    sizes.add_arguments(parser, lengths=(1024, 4096, 16384, 65536))
    add(
        "--implementations",
        type=measure.names(contenders.IMPLEMENTATIONS),
        default=("xla",),
        help=f"of Blossom, of {', '.join(contenders.IMPLEMENTATIONS)}; auto is what runs unnamed",
    )
    add("--peers", type=peers, default=("xla",), help="e.g. xla,cudnn,cudnn:2x64,torch")


def run(arguments: argparse.Namespace) -> None:
    """Measures everything, then prints a table and draws a plot."""
    chosen = choose(arguments.implementations, arguments.peers)
    report = measure.Report("attention", arguments.json, arguments.commit)
    ceilings = machine.measure_ceilings(arguments.rounds)
    for each in sizes.read(arguments):
        for measured in MEASURED:
            compare(chosen, each, measured, arguments.rounds, report, ceilings)
    print_table(report.records)
    if arguments.plot:
        plot.draw(report.records, arguments.plot)


def peers(text: str) -> tuple[str, ...]:
    """Reads peers, as argparse's `type`."""
    names = tuple(word for word in text.split(",") if word)
    for name in names:
        _peer(name)
    return names


def _peer(name: str) -> Contender:
    found = re.fullmatch(r"(\w+)(?::(\d+)x(\d+))?", name)
    if not found or found[1] not in contenders.LIBRARIES:
        raise argparse.ArgumentTypeError(
            f"{name!r} is none of {', '.join(contenders.LIBRARIES)}, with or without :HEADSxSIZE"
        )
    split = (measure.positive(found[2]), measure.positive(found[3])) if found[2] else None
    return contenders.dense(found[1], split)


def choose(implementations: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Contender]:
    """Returns contenders by the name that reports give them."""
    chosen = {f"blossom_{name}": contenders.blossom(name) for name in implementations}
    return chosen | {f"dense_{name}": _peer(name) for name in names}


def compare(
    chosen: Mapping[str, Contender],
    size: Sizes,
    measured: str,
    rounds: int,
    report: measure.Report,
    ceilings: machine.Ceilings,
) -> None:
    """Measures all contenders at one size, and reports each.

    `speedup` and `memory_ratio` say by other contender how many times as much time and temporary
    memory that one takes. `temporary_bytes_growth` is to the same contender at the length that was
    measured first. `error` says why there are no seconds.

    Args:
      chosen: Contenders by name.
      size: Of the call.
      measured: One of `MEASURED`.
      rounds: As in `measure.medians`.
      report: Where measurements are added.
      ceilings: Of this machine.
    """
    failed: dict[str, str] = {}
    programs = _prepare(chosen, size, measured, failed)
    fitting = {name: p.call for name, p in programs.items() if name not in failed}
    seconds: dict[str, Any] = measure.medians(fitting, rounds, failed)
    temporary = {name: program.temporary_bytes for name, program in programs.items()}
    for name in chosen:
        same = {"attention": name, "measured": measured} | _besides_length(size)
        before = report.find(**same) or {"temporary_bytes": temporary.get(name)}
        report.add(
            **same,
            rows=size.rows,
            length=size.length,
            seconds=seconds.get(name),
            speedup=measure.times_of_others(name, seconds, chosen),
            temporary_bytes=temporary.get(name),
            memory_ratio=measure.times_of_others(name, temporary, chosen),
            temporary_bytes_growth=measure.ratio(temporary.get(name), before["temporary_bytes"]),
            error=failed.get(name),
            **_floor(programs.get(name), seconds.get(name), ceilings),
        )


def _prepare(chosen, size: Sizes, measured: str, failed: dict[str, str]) -> dict[str, Program]:
    draws = Draws()
    limit = memory.available_bytes(jax.local_devices())
    if jax.default_backend() == "cpu":
        limit //= 2  # a host that runs out kills the process; a GPU says so
    programs = {}
    for name, prepare in chosen.items():
        try:
            programs[name] = prepare(size, measured, draws)
        except Exception as error:  # the others go on
            failed[name] = measure.reason(error)
            continue
        needed = programs[name].needed_bytes
        if needed and needed > limit:
            failed[name] = f"too large: needs {needed:,} bytes, the limit is {limit:,}"
    return programs


def _besides_length(size: Sizes) -> dict[str, Any]:
    fields = dataclasses.asdict(size)
    return {key: value for key, value in fields.items() if key not in ("rows", "length")}


def _floor(
    program: Program | None, seconds: float | None, ceilings: machine.Ceilings
) -> dict[str, Any]:
    if program is None:
        return {}
    least = floor.floor_seconds(program.moved_bytes, program.exponentials, ceilings)
    return {
        "input_sets": program.sets,
        "floor_bytes": program.moved_bytes,
        "floor_exponentials": program.exponentials,
        "floor_seconds": least,
        "floor_fraction": measure.ratio(least, seconds),
        **ceilings._asdict(),
    }


def print_table(records: list[dict]) -> None:
    """Prints what was measured, with a column of speedups for each contender, then what was not."""
    measured = [record for record in records if record["seconds"]]
    names = list(dict.fromkeys(record["attention"] for record in measured))

    def row(record):
        size, part = record["temporary_bytes"], record["floor_fraction"]
        return (
            record["attention"],
            record["measured"].replace("_", " + "),
            f"{record['rows']} x {record['length']:,}",
            f"{record['seconds'] * 1e3:,.2f}",
            *(measure.shown_ratio(record["speedup"].get(name)) for name in names),
            f"{size / 2**20:,.1f}" if size is not None else "",
            f"{part:.0%}",
        )

    header = ["attention", "measured", "rows x length", "ms"]
    header += [*(f"vs {name}" for name in names), "temporary MiB", "of floor"]
    measure.print_table(header, map(row, measured))
    measure.print_failures("attention", records)
