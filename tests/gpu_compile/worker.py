"""Compiles programs on request, each in a process of its own, which a bad kernel may take along.

    python -m gpu_compile.worker PROGRAM GPU [kernels|program|memory]

prints the report as JSON. Without arguments it answers requests, each a line of standard input
with those words. jax is imported once; every request is answered by a fork.
"""

import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from gpu_compile import cases, compiler, kernels
from gpu_compile.cache import Cache
from gpu_compile.environment import CACHE_FOLDER, begin_anew_with_plugin, timeout
from gpu_compile.machine_code import MachineCode, disassemble
from gpu_compile.report import Kernel, Report

_LONGEST_MESSAGE = 3000
# What every process says that loads the CUDA plugin where there is no CUDA.
_NOISE = ("cudart_stub.cc", "before absl::InitializeLog()", "deviceless CUB", "To avoid this,")


def main(arguments: list[str]) -> None:
    """Answers the request in the arguments, or those on standard input."""
    for request in [" ".join(arguments)] if arguments else sys.stdin:
        report = answer(*request.split())
        print(json.dumps(dataclasses.asdict(report)), flush=True)


def answer(name: str, gpu: str, what: str = "kernels") -> Report:
    """Compiles in a fork, and reports whatever becomes of it.

    Args:
      name: of a program.
      gpu: key of `GPUS`.
      what: "kernels", each alone; "memory", of the whole program; or "program", both, and whether
        the kernels in the program are the same code as alone.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile() as log:
        child = os.fork()
        if child == 0:
            _be_child(name, gpu, what, out, log)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        found = _collect([json.loads(line) for line in out])
        if not os.WIFEXITED(status):
            found["failures"].append(f"{found['now']}: {_death(status)}{_said(log)}")
    del found["now"]
    return Report(name, gpu, **found, seconds=time.monotonic() - started)


def _collect(lines: list[tuple[str, Any]]) -> dict[str, Any]:
    """Puts together what a child has written."""
    found: dict[str, Any] = {"kernels": None, "memory": None, "failures": [], "now": ""}
    for what, value in lines:
        if what in ("now", "memory", "kernels"):
            found[what] = value
        elif what == "kernel":
            found["kernels"].append(Kernel(**value))
        else:
            found["failures"].append(f"{found['now']}: {value}")
    return found


def _be_child(name: str, gpu: str, what: str, out: IO, log: IO) -> NoReturn:
    """Writes what it finds, line by line, so that what it found survives it."""
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends it in the middle of C++ too
    signal.alarm(timeout())
    for line in _work(name, gpu, what, log):
        print(json.dumps(line), file=out, flush=True)
    os._exit(0)


def _work(name: str, gpu: str, what: str, log: IO) -> Iterator[tuple[str, Any]]:
    """Yields what it is at, and what comes of it."""
    yield "now", name
    try:
        device = compiler.device_of(gpu)
        fn, arguments = cases.PROGRAMS[name].build(device)
        alone: dict[str, Kernel] = {}
        if what != "memory":
            calls = kernels.pallas_calls(fn, arguments)
            yield from _compile_each(calls, device, log, alone)
            yield "now", name
        if what != "kernels":
            compiled = compiler.lower(fn, arguments, device).compile()
            yield "memory", compiler.memory(compiled)
            for kernel in alone.values():
                yield from _compare(kernel, disassemble(compiler.cubin(compiled, kernel.name)))
    except Exception as error:
        yield "failure", _describe(error) + _said(log)


def _compile_each(calls, device, log: IO, done: dict[str, Kernel]) -> Iterator[tuple[str, Any]]:
    """Adds each kernel that compiles to `done`; one that does not leaves the others to be tried."""
    yield "kernels", []
    for call in calls:
        yield "now", call.name
        before = os.fstat(log.fileno()).st_size
        try:
            kernel = done[call.name] = compiler.compile_kernel(call, device, Cache(CACHE_FOLDER))
            yield "kernel", dataclasses.asdict(kernel)
        except Exception as error:
            yield "failure", _describe(error) + _said(log, before)


def _compare(alone: Kernel, inside: MachineCode) -> Iterator[tuple[str, Any]]:
    """Yields a failure unless a kernel in a program is the same as alone."""
    same = alone.registers == inside.registers and alone.spills == inside.spills
    if not same or alone.tensor_core != inside.tensor_core:
        yield "failure", f"{alone.name} is {alone} alone, and {inside} in the program"


def _death(status: int) -> str:
    signal_number = os.WTERMSIG(status)
    if signal_number == signal.SIGALRM:
        return f"took longer than {timeout()} seconds"
    return f"the compiler died of {signal.Signals(signal_number).name}"


def _describe(error: Exception) -> str:
    """Names the first cause of an error, which jax may have wrapped."""
    return f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]


def _said(log: IO, start: int = 0) -> str:
    """Returns what the compiler has written from some byte on, without what it always writes."""
    text = os.pread(log.fileno(), 1 << 20, start).decode(errors="replace")
    lines = [line for line in text.splitlines() if not any(noise in line for noise in _NOISE)]
    return "".join(f"\n    {line}" for line in lines)[-_LONGEST_MESSAGE:]


if __name__ == "__main__":
    begin_anew_with_plugin("gpu_compile.worker")
    main(sys.argv[1:])
