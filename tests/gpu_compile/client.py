"""Asks workers to compile, from a process that has nothing of jax in it."""

import json
import subprocess
import sys
import tempfile
from typing import Any

from gpu_compile.environment import worker_environment
from gpu_compile.report import Report


class Worker:
    """A process of `gpu_compile.worker`, to be used in a `with`."""

    def __enter__(self) -> "Worker":
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpu_compile.worker"],
            env=worker_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def compile(self, program: Any, gpu: str, what: str = "kernels") -> Report:
        """Compiles a program, in a process of its own.

        Args:
          program: one of `cases.PROGRAMS`, or its name.
          gpu: key of `GPUS`.
          what: "kernels", each alone; or "memory", of the whole program.

        Raises:
          RuntimeError: the worker itself has ended, with all that it wrote.
        """
        print(program, gpu, what, file=self._process.stdin, flush=True)
        if line := self._process.stdout.readline():
            return Report.from_json(json.loads(line))
        self._log.seek(0)
        raise RuntimeError(f"the worker ended with {self._process.wait()}\n{self._log.read()}")
