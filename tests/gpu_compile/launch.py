"""Launches captured kernels on a GPU, by CuPy and without jax: times and checks them.

    python -m gpu_compile.launch FOLDER [OTHER ...] [--arrays FOLDER] [--only WORD]

with the folder `tests` on PYTHONPATH. FOLDER and OTHERs are of `gpu_compile.capture`, of several
versions of the code; --arrays is one that was captured with its arrays. Prints milliseconds of each
kernel by folder, the median, and how far what it writes is from what was captured, as a share of
the largest value. Entries that a kernel does not write count for nothing. For the counters:

    ncu --clock-control none --set full --export FILE python -m gpu_compile.launch FOLDER --once
"""

import argparse
import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

LAUNCHES = "launches.json"
ROUNDS, CALLS = 12, 3  # medians of so many rounds of so many calls
_ABSENT = 1e20  # values from here on stand for nothing
_SMALLEST = 1e-30


def main() -> None:
    """Launches what the command line asks for."""
    options = _parse()
    arrays = options.arrays or options.folders[0]
    versions = {folder: _launches(folder) for folder in options.folders}
    for key in versions[options.folders[0]]:
        if options.only in key:
            _compare(
                key,
                {f: found[key] for f, found in versions.items() if key in found},
                arrays,
                options.once,
            )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_compile.launch", description=__doc__)
    add = parser.add_argument
    add("folders", type=pathlib.Path, nargs="+")
    add("--arrays", type=pathlib.Path, help="the folder with arrays, if not the first")
    add("--only", default="", help="part of the names of the kernels that are launched")
    add("--once", action="store_true", help="launch each once, for a profiler, and compare nothing")
    return parser.parse_args()


def _launches(folder: pathlib.Path) -> dict[str, dict]:
    return {launch["key"]: launch for launch in json.loads((folder / LAUNCHES).read_text())}


def _compare(
    key: str, versions: dict[pathlib.Path, dict], arrays: pathlib.Path, once: bool
) -> None:
    """Launches one kernel in all its versions, and prints a line for each."""
    import cupy

    any_version = next(iter(versions.values()))
    inputs = [cupy.asarray(x) for x in _load(arrays, f"{key}_in", any_version["inputs"])]
    wanted = _load(arrays, f"{key}_out", any_version["outputs"])
    outputs = [cupy.zeros(x.shape, x.dtype) for x in wanted]
    calls, errors = {}, {}
    for folder, launch in versions.items():
        calls[folder] = _prepare(cupy, folder, launch, [*inputs, *outputs])
        if once:
            calls[folder]()
            continue
        written = [_write_over(cupy, calls[folder], outputs, fill) for fill in (0, 1)]
        errors[folder] = [
            error(x, y, x == again) for x, again, y in zip(*written, wanted, strict=True)
        ]
    times = {} if once else _times(cupy, calls)
    for folder in times:
        found = f"{times[folder]:8.4f} ms  error"
        print(f"{key:24}{folder.name:20}{found}", *(f"{x:.1e}" for x in errors[folder]))


def _write_over(cupy: Any, call: Callable, outputs: list, fill: int) -> list[np.ndarray]:
    """Returns what a kernel writes over arrays that were filled."""
    for output in outputs:
        output.fill(fill)
    call()
    return [cupy.asnumpy(output) for output in outputs]


def _load(folder: pathlib.Path, begin: str, count: int) -> list[np.ndarray]:
    return [np.load(folder / f"{begin}{n}.npy") for n in range(count)]


def _prepare(cupy: Any, folder: pathlib.Path, launch: dict, arrays: list) -> Callable[[], None]:
    module = cupy.RawModule(path=str(folder / f"{launch['key']}.cubin"))
    kernel = module.get_function(launch["name"])
    size = tuple(launch["grid"]), (launch["threads"],)
    return lambda: kernel(*size, tuple(arrays), shared_mem=launch["shared_memory"])


def _times(cupy: Any, calls: dict[pathlib.Path, Callable]) -> dict[pathlib.Path, float]:
    """Returns the median milliseconds of a call, of rounds in which versions take turns."""
    rounds: dict[pathlib.Path, list[float]] = {folder: [] for folder in calls}
    for _ in range(ROUNDS):
        for folder, call in calls.items():
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            for _ in range(CALLS):
                call()
            end.record()
            end.synchronize()
            rounds[folder].append(cupy.cuda.get_elapsed_time(begin, end) / CALLS)
    return {folder: statistics.median(found) for folder, found in rounds.items()}


def error(found: np.ndarray, wanted: np.ndarray, written: np.ndarray | None = None) -> float:
    """Returns the largest difference as a share of the largest value, both as they were saved.

    Infinite where a value stands for nothing in one of them alone.

    Args:
      found: what a kernel wrote.
      wanted: what was captured.
      written: which entries count; None = all.
    """
    a, b = (_widened(x if written is None else x[written]) for x in (found, wanted))
    absent = [np.abs(x) >= _ABSENT for x in (a, b)]
    if np.any(absent[0] != absent[1]):
        return float("inf")
    a, b = a[~absent[0]], b[~absent[0]]
    return float(np.abs(a - b).max(initial=0) / np.abs(b).max(initial=_SMALLEST))


def _widened(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint16:  # bf16
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


if __name__ == "__main__":
    main()
