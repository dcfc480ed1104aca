"""Tiles that were measured to be faster than the heuristics', by kernel and shape.

`python -m experiments.benchmark tune --output pallas_kernels/tuned.json` searches them on a GPU and
writes the file, with the device, the versions and the seconds of each.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Tiles = TypeVar("Tiles")

_FILE = pathlib.Path(__file__).with_name("tuned.json")
_forced: dict[str, Any] = {}


def choose(kernel: str, shape: Mapping[str, Any], heuristics: Tiles) -> Tiles:
    """Returns the tiles of a kernel: tuned for this shape and the nearest length, or `heuristics`.

    Args:
      kernel: its name.
      shape: what its tiles depend on; "length" need not be met.
      heuristics: a frozen dataclass of tiles.
    """
    if kernel in _forced:
        return _forced[kernel]
    same = [
        entry
        for entry in table()
        if entry["kernel"] == kernel and {**entry["shape"], "length": shape["length"]} == shape
    ]
    if not same:
        return heuristics

    def distance(entry):
        return abs(math.log(entry["shape"]["length"] / shape["length"]))

    return dataclasses.replace(heuristics, **min(same, key=distance)["tiles"])  # type: ignore[type-var]


@functools.cache
def table() -> list[dict[str, Any]]:
    """Reads the entries of the file."""
    return json.loads(_FILE.read_text())["tiles"]


@contextlib.contextmanager
def force(kernel: str, tiles: Any) -> Iterator[None]:
    """Has a kernel that is traced meanwhile use these tiles."""
    _forced[kernel] = tiles
    try:
        yield
    finally:
        del _forced[kernel]
