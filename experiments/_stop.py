"""What SIGTERM and Ctrl-C do to a command while nothing in it is there to save."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax

_STOPPED = b"stopped; run the same command to go on\n"


@contextlib.contextmanager
def exits_at_signals(code: int = 0) -> Iterator[None]:
    """Ends the process at a SIGTERM or Ctrl-C, unless something inside handles them.

    Training does (`trainer.signals`): it finishes its step and saves. Before it and after it
    nothing would be lost. The process ends at once, as by a kill -9: an exception may be raised in
    a callback of the compiler, which drops it, and an interpreter that ends in order crashes while
    programs are compiled. Of several processes JAX collects the signal, see `trainer.signals`.

    Args:
      code: Exit code at a SIGTERM; at a Ctrl-C it is 130.
    """
    if jax.process_count() > 1:
        yield
        return

    def leave(number, frame):
        os.write(2, _STOPPED)
        os._exit(code if number == signal.SIGTERM else 130)

    numbers = signal.SIGTERM, signal.SIGINT
    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
