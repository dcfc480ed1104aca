"""What a SIGTERM does to a command while nothing in it is there to save."""

import contextlib
import signal
import sys
from collections.abc import Iterator

import jax


class _Stopped(BaseException):
    """Unwinds the command, so that files and processes are closed in order."""


@contextlib.contextmanager
def exits_at_sigterm(code: int = 0) -> Iterator[None]:
    """Ends the process with an exit code at a SIGTERM, unless something inside handles it.

    Training does (`trainer.signals`): it finishes its step and saves. Before it and after it
    nothing would be lost. Python gets to it once a program is compiled. Of several processes JAX
    collects the signal, see `trainer.signals`.

    Raises:
      SystemExit: At a SIGTERM, with that code.
    """
    if jax.process_count() > 1:
        yield
        return

    def stop(number, frame):
        signal.signal(number, signal.SIG_IGN)  # what is closed now is closed once
        raise _Stopped

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Stopped:
        print("stopped; run the same command to go on", file=sys.stderr, flush=True)
        sys.exit(code)
    finally:
        signal.signal(signal.SIGTERM, previous)
