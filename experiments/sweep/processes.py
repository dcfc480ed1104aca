"""Runs commands side by side, and passes on the signal to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

STOPPED = 143  # exit code of a command that a SIGTERM stopped, after it saved


def run_all(
    commands: Mapping[str, Sequence[str]], *, jobs: int, gpus: Sequence[str] = ()
) -> dict[str, int]:
    """Runs every command, a few at a time; one that fails stops no other.

    A SIGTERM to this process goes to all that run, and no other is started. A Ctrl-C reaches them
    all by itself.

    Args:
      commands: Arguments by name.
      jobs: How many run at a time.
      gpus: GPUs to spread them over: each command sees one, that on which the fewest run. () = all
        see what this process sees.

    Returns:
      Exit codes by name; `STOPPED` for those that were not started.
    """
    waiting: list[str] = list(commands)
    running: dict[str, subprocess.Popen] = {}
    place: dict[str, str] = {}  # of what runs
    codes = dict.fromkeys(commands, STOPPED)
    with _stopping(running, waiting):
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                own = None
                if gpus:
                    place[name] = min(gpus, key=[*place.values()].count)
                    own = os.environ | {"CUDA_VISIBLE_DEVICES": place[name]}
                running[name] = subprocess.Popen(commands[name], env=own)
            time.sleep(0.1)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                codes[name] = running.pop(name).returncode
                place.pop(name, None)
                if codes[name]:
                    print(f"{name}: ended with exit code {codes[name]}", file=sys.stderr)
    return codes


@contextlib.contextmanager
def _stopping(running: dict, waiting: list) -> Iterator[None]:
    def stop(number, _):
        waiting.clear()
        for process in running.values() if number == signal.SIGTERM else ():
            process.terminate()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
