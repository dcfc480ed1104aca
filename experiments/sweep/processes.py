"""Runs commands side by side, and passes on the signal to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

STOPPED = 143  # exit code of a command that a SIGTERM stopped, after it saved


def run_all(
    commands: Mapping[str, Sequence[str]],
    *,
    jobs: int,
    gpus: Sequence[str] = (),
    after: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, int]:
    """Runs every command, a few at a time; one that fails stops none but those that are after it.

    A SIGTERM to this process goes to all that run, and no other is started. A Ctrl-C reaches them
    all by itself.

    Args:
      commands: Arguments by name.
      jobs: How many run at a time.
      gpus: GPUs to spread them over: each command sees one, that on which the fewest run. () = all
        see what this process sees.
      after: Commands by name that must have ended well before one begins.

    Returns:
      Exit codes by name; `STOPPED` for those that were not started, or that of what failed before.
    """
    waiting: list[str] = list(commands)
    running: dict[str, subprocess.Popen] = {}
    place: dict[str, str] = {}  # of what runs
    codes: dict[str, int] = {}  # of what ended
    with _stopping(running) as received:
        while running or (waiting and not received):
            _give_up(waiting, codes, after)
            for name in _ready(waiting, codes, after)[: jobs - len(running)]:
                if received:
                    break
                waiting.remove(name)
                own = None
                if gpus:
                    place[name] = min(gpus, key=[*place.values()].count)
                    own = os.environ | {"CUDA_VISIBLE_DEVICES": place[name]}
                running[name] = subprocess.Popen(commands[name], env=own)
                if signal.SIGTERM in received:  # while it was started
                    running[name].terminate()
            time.sleep(0.1)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                codes[name] = STOPPED if code == -signal.SIGTERM else code
                place.pop(name, None)
                if codes[name]:
                    print(f"{name}: ended with exit code {codes[name]}", file=sys.stderr)
    return {name: codes.get(name, STOPPED) for name in commands}


def _ready(
    waiting: Sequence[str], codes: Mapping[str, int], after: Mapping[str, Sequence[str]]
) -> list[str]:
    """Lists what waits for nothing that has not ended."""
    return [name for name in waiting if all(before in codes for before in after.get(name, ()))]


def _give_up(waiting: list[str], codes: dict[str, int], after: Mapping[str, Sequence[str]]) -> None:
    """Takes out what is after something that failed, with the exit code of that."""
    for name in list(waiting):
        failed = [before for before in after.get(name, ()) if codes.get(before)]
        if failed:
            waiting.remove(name)
            codes[name] = codes[failed[0]]
            print(f"{name}: not started, since {', '.join(failed)} failed", file=sys.stderr)


@contextlib.contextmanager
def _stopping(running: Mapping[str, subprocess.Popen]) -> Iterator[list[int]]:
    """Passes a SIGTERM on; yields the signals that have come."""
    received: list[int] = []

    def stop(number, _):
        received.append(number)
        for process in [*running.values()] if number == signal.SIGTERM else ():
            process.terminate()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
