"""Times programs against one another, and writes down what came out."""

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax


def positive(text: str) -> int:
    """Reads a whole number of at least 1, as argparse's `type`."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Times calls in turn, round after round, so that a slow spell of the machine hits them all.

    Args:
      calls: Each returns arrays that are waited for.
      rounds: Turns of each: a call that is not timed, then two that are.

    Returns:
      Median seconds of a call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            # Compiles, and sits out the other's gigabytes going back to the system: that took
            # up to five times as long as a call of the smaller program itself.
            jax.block_until_ready(call())
            for _ in range(2):
                began = time.perf_counter()
                jax.block_until_ready(call())
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


class Report:
    """Prints and keeps measurements, one JSON object a line."""

    def __init__(self, benchmark: str, path: str | None = None):
        """Starts the file.

        Args:
          benchmark: Name that every line bears.
          path: File to write besides printing.
        """
        self.records: list[dict] = []
        self._same = {
            "benchmark": benchmark,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
        }
        self._path = pathlib.Path(path) if path else None
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
    cells = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print()
    for first, *others in cells:
        right = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join((f"{first:<{widths[0]}}", *right)))
