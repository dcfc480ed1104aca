"""Times programs against one another, and writes down what came out."""

import argparse
import datetime
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from experiments import _columns, _commit

_TIMED_SECONDS = 0.05  # of one timing on an accelerator, long beside a launch
_MOST_REPEATS = 50  # calls that are enqueued at once


def positive(text: str) -> int:
    """Reads a whole number of at least 1, as argparse's `type`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positives(text: str) -> tuple[int, ...]:
    """Reads such numbers, separated by commas."""
    return tuple(positive(word) for word in text.split(","))


def names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns an argparse `type` that reads some of the known names, separated by commas."""
    known = tuple(known)

    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(word for word in text.split(",") if word)
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(known)}")
        return chosen

    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every benchmark."""
    parser.add_argument(
        "--rounds", type=positive, default=3, help="turns of two timings, 3 by default"
    )
    parser.add_argument(
        "--commit",
        default=_commit.git_commit() or "unknown",
        help="what the results bear; by default what git says",
    )


def provenance(commit: str) -> dict[str, Any]:
    """Says where, when and with what a measurement was taken."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def medians(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    failed: dict[str, str] | None = None,
    *,
    cpu_time: bool = False,
) -> dict[str, float]:
    """Times calls in turn, round after round, so that a slow spell of the machine hits them all.

    On an accelerator a timing covers several calls, enqueued without waiting between them: what
    remains is the device's time and not the launch's. The runtime runs them in their order, so
    waiting for the last is waiting for all.

    Args:
      calls: Each returns arrays that are waited for.
      rounds: Turns of each: a call that is not timed, then two timings.
      failed: Receives why a call could not run, by name; it gets no further turn. Without it the
        error is raised.
      cpu_time: Counts the process' CPU seconds instead, which others' work changes less.

    Returns:
      Median seconds of a call, by name; of those that did not fail.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if failed and name in failed:
                continue
            try:
                seconds[name] += _turn(call, cpu_time)
            except Exception as error:  # whatever a contender may raise, the others go on
                if failed is None:
                    raise
                failed[name] = reason(error)
    done = {name: times for name, times in seconds.items() if not failed or name not in failed}
    return {name: statistics.median(times) for name, times in done.items()}


def _turn(call: Callable[[], Any], cpu_time: bool) -> list[float]:
    # Compiles, and sits out the other's gigabytes going back to the system: that took up to five
    # times as long as a call of the smaller program itself.
    jax.block_until_ready(call())
    repeats = 1
    if jax.default_backend() != "cpu":
        repeats = min(math.ceil(_TIMED_SECONDS / _seconds(call, 1, cpu_time)), _MOST_REPEATS)
    return [_seconds(call, repeats, cpu_time) for _ in range(2)]


def _seconds(call: Callable[[], Any], repeats: int, cpu_time: bool) -> float:
    clock = time.process_time if cpu_time else time.perf_counter
    began = clock()
    for _ in range(repeats):
        last = call()
    jax.block_until_ready(last)
    return (clock() - began) / repeats


def both_seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Times one call that is compiled.

    Returns:
      Seconds on the clock, and of the process' CPU time.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - began, time.process_time() - cpu_began


def reason(error: Exception) -> str:
    """Says in one line why a program could not run."""
    text = " ".join(str(error).split())
    if isinstance(error, NotImplementedError):
        return text
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text:
        return f"out of memory: {text}"[:300]
    return f"{type(error).__name__}: {text}"[:300]


class Report:
    """Prints and keeps measurements, one JSON object a line."""

    def __init__(self, benchmark: str, path: pathlib.Path | None = None, commit: str = "unknown"):
        """Starts the file.

        Args:
          benchmark: Name that every line bears.
          path: File to write besides printing.
          commit: Of the code that is measured.
        """
        self.records: list[dict] = []
        self._same = {"benchmark": benchmark, **provenance(commit)}
        self._path = path
        if self._path:
            self._path.write_text("")

    def add(self, **record) -> dict:
        """Prints and keeps one measurement, and returns it."""
        self.records.append(record)
        line = json.dumps(self._same | record)
        print(line, flush=True)
        if self._path:
            with self._path.open("a") as file:
                file.write(line + "\n")
        return record

    def find(self, **wanted) -> dict | None:
        """Returns the first measurement with these values, if there is one."""
        return next((r for r in self.records if wanted.items() <= r.items()), None)


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints columns of text, the first to the left and the others to the right."""
    cells = [tuple(header), *map(tuple, rows)]
    print("", *_columns.align(cells), sep="\n")


def print_failures(kind: str, records: Iterable[dict]) -> None:
    """Prints each reason once, with the lengths that it kept from being measured.

    Args:
      kind: Field of the contender's name.
      records: All measurements.
    """
    where: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record["error"]:
            lengths = where.setdefault((record[kind], record["error"]), [])
            if (length := f"{record['length']:,}") not in lengths:
                lengths.append(length)
    for (name, error), lengths in where.items():
        print(f"{name} at {', '.join(lengths)}: {error}")


def times_of_others(
    name: str, values: Mapping[str, float | None], contenders: Iterable[str]
) -> dict[str, float]:
    """Returns the others' values as multiples of one contender's, where both are known."""
    mine = values.get(name)
    others = {other: values.get(other) for other in contenders if other != name}
    return {other: value / mine for other, value in others.items() if value is not None and mine}


def ratio(value: float | None, base: float | None) -> float | None:
    """Divides what is known."""
    return value / base if value is not None and base else None


def shown_ratio(value: float | None) -> str:
    """Returns a ratio as text, empty where there is none."""
    return f"{value:.2f}x" if value is not None else ""
