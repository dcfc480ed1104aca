"""Compiles the whole matrix, and prints what every kernel became on every GPU.

    python -m gpu_compile [-j JOBS] [--gpus a100 h200] [--only WORD ...] [--subset]

with the folder `tests` on PYTHONPATH; `make gpu-compile` sees to that. What was proven is kept in
`build/gpu_compile` until a file of `pallas_kernels`, `blossom_jax` or this folder changes, so that
a run that was stopped goes on from there, and kernels that came out the same are not compiled again
even then.
The exit status is 1 if anything is wrong.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import queue
import sys
from collections.abc import Iterator

from gpu_compile import cases
from gpu_compile.cache import Cache
from gpu_compile.case import Program
from gpu_compile.client import Worker
from gpu_compile.environment import CACHE_FOLDER, ROOT
from gpu_compile.report import Report
from gpu_compile.targets import GPUS, TRITON_GPUS

Pair = tuple[Program, str]
_ROW = "{:<85} {:<5} {:<18} {:>4} {:>7} {:>6}  {}"


def main() -> None:
    """Compiles what the command line asks for."""
    options = _parse()
    pairs = cases.SUBSET if options.subset else _all_pairs()
    pairs = [pair for pair in pairs if _wanted(pair, options)]
    print(_ROW.format("program", "GPU", "kernel", "regs", "smem", "spills", "tensor cores"))
    failed = []
    for done, report in enumerate(_compile(pairs, options.jobs), 1):
        _print(report)
        failed += [report] if report.problems else []
        if sys.stderr.isatty():
            print(f"{done} of {len(pairs)}, {len(failed)} failed\r", end="", file=sys.stderr)
    print(f"{len(pairs) - len(failed)} passed, {len(failed)} failed")
    sys.exit(bool(failed))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_compile", description=__doc__)
    add = parser.add_argument
    add("-j", "--jobs", type=int, default=1, help="programs compiled at a time")
    add("--gpus", nargs="+", default=TRITON_GPUS, choices=TRITON_GPUS)
    add("--only", nargs="+", default=[], help="words that the program's name must have")
    add("--subset", action="store_true", help="only what the tests compile")
    return parser.parse_args()


def _all_pairs() -> list[Pair]:
    """Lists what the dispatcher may choose: not what a GPU has too little shared memory for."""
    return [
        (case, gpu)
        for case in cases.MATRIX
        for gpu in TRITON_GPUS
        if getattr(case, "shared_memory", 0) <= GPUS[gpu].shared_memory_limit
    ]


def _wanted(pair: Pair, options: argparse.Namespace) -> bool:
    case, gpu = pair
    return gpu in options.gpus and all(word in str(case).split("-") for word in options.only)


def _compile(pairs: list[Pair], jobs: int) -> Iterator[Report]:
    """Yields the reports in the order of the pairs."""
    proven = Cache(CACHE_FOLDER / "proven")
    folders = "pallas_kernels", "blossom_jax", "tests/gpu_compile"
    paths = (path for folder in folders for path in sorted(ROOT.glob(f"{folder}/**/*")))
    sources = [path.read_text() for path in paths if path.suffix in (".py", ".json")]
    workers: queue.Queue[Worker] = queue.Queue()

    def report(pair: Pair) -> Report:
        key = proven.key(repr(pair), *sources)
        if (kept := proven.get(key)) is not None:
            return Report.from_json(kept)
        worker = workers.get()
        try:
            found = worker.compile(*pair)
        finally:
            workers.put(worker)
        if not found.problems:
            proven.put(key, dataclasses.asdict(found))
        return found

    with contextlib.ExitStack() as stack:
        for _ in range(jobs):
            workers.put(stack.enter_context(Worker()))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(jobs))
        yield from pool.map(report, pairs)


def _print(report: Report) -> None:
    for kernel in report.kernels or []:
        used = " ".join(f"{opcode}:{count}" for opcode, count in kernel.tensor_core.items())
        figures = (kernel.registers, kernel.shared_memory, kernel.spills, used or "-")
        print(_ROW.format(report.program, report.gpu, kernel.name, *figures))
    for problem in report.problems:
        print(f"FAILED {report.program} on {report.gpu}: {problem}", flush=True)


if __name__ == "__main__":
    main()
