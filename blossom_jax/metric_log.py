"""Where a run's numbers go: metrics.jsonl, TensorBoard, and the terminal."""

import contextlib
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import TextIO

import tensorboardX
import tqdm

from blossom_jax.errors import NonFiniteError, UserError


class MetricLog:
    """Appends to `metrics.jsonl`, one JSON object a line, and to TensorBoard's event files.

    No line holds a time, so that a run that was killed and resumed leaves the same file, to the
    bit, as one that was not.
    """

    def __init__(self, workdir: pathlib.Path, step: int, *, writes: bool = True):
        """Opens the log to continue after `step`; what was logged later is cut off.

        Args:
          workdir: Folder of the run.
          step: Steps taken so far.
          writes: False makes this a log that keeps nothing: one process of many writes.
        """
        path = workdir / "metrics.jsonl"
        if writes:
            cut_after(path, step)
        self._file = open(path if writes else os.devnull, "a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=step + 1,
            flush_secs=10,
            write_to_disk=writes,
        )

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes one line, at once, and the same values under `split/` in TensorBoard.

        Args:
          step: Steps taken.
          split: "train", "valid" or "test".
          values: Numbers by name; the line keeps their order.

        Raises:
          NonFiniteError: At a number that is not finite; then nothing is written.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{split} {name} is {value} at step {step}; earlier checkpoints are kept"
                )
        line = json.dumps({"step": step, "split": split, **values})
        self._file.write(line + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()


def cut_after(path: pathlib.Path, step: int) -> None:
    """Drops the lines of later steps and of the test, and a last line that a kill left unfinished.

    The test is the last thing in a run; one that is resumed has it still before it.

    Raises:
      UserError: Another line is damaged.
    """
    if not path.exists():
        return
    kept = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            values = json.loads(line)
            is_later = values["step"] > step or values["split"] == "test"
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}:{number} is damaged: delete that line, and the same command goes on"
            ) from error
        if is_later:
            break
        kept.append(line)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


class Terminal:
    """Shows progress: a bar with rate and time left on a terminal, else a plain line a report."""

    def __init__(self, step: int, num_steps: int, stream: TextIO | None = None):
        """Starts at `step` of `num_steps`; writes to `stream`, standard error if None."""
        self._stream = stream or sys.stderr
        self._num_steps = num_steps
        self._first_step = step
        self._began = self._window_began = time.monotonic()
        self._bar = None
        if self._stream.isatty():
            columns, rows = shutil.get_terminal_size()  # not 0 where the terminal does not know
            self._bar = tqdm.tqdm(
                total=num_steps,
                initial=step,
                unit="step",
                file=self._stream,
                ncols=columns,
                nrows=rows,
            )

    def advance(self) -> None:
        """Counts one step."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, loss: float, tokens: float) -> None:
        """Shows the loss, the rate of training, and the time left with evaluations as before.

        Args:
          step: Steps taken.
          loss: Mean over the steps since the last report.
          tokens: Targets trained since the last report.
        """
        now = time.monotonic()
        rate = f"{tokens / (now - self._window_began):,.0f} tokens/s"
        self._window_began = now
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate}")
            return
        left = (now - self._began) / (step - self._first_step) * (self._num_steps - step)
        self.say(f"step {step:,}/{self._num_steps:,}  loss {loss:.4f}  {rate}  {clock(left)} left")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the rate of training."""
        began = time.monotonic()
        yield
        self._window_began += time.monotonic() - began

    def say(self, line: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """Returns seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
