"""The training loop: steps, log lines, evaluations and checkpoints, until there is no more to gain.

A run that was killed and started again does what an uninterrupted one does, to the bit: whatever
the loop remembers is either in the training state or in `Progress`, and both are in every
checkpoint.
"""

import collections
import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.experimental import multihost_utils

from blossom_jax import sharding
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.errors import NonFiniteError
from blossom_jax.metric_log import MetricLog, Terminal
from blossom_jax.schedule import Progress, Schedule


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains one model.

    Attributes:
      train_step: `(state, batch) -> (state, metrics)` as in `train_step.py`.
      evaluate: Turns parameters into validation metrics by name.
      schedule: When what happens.
      checkpoints: Where the state is saved.
      log: Where metrics are written.
      terminal: Where they are shown.
    """

    train_step: Callable[[dict, dict], tuple[dict, dict]]
    evaluate: Callable[[object], dict[str, float]]
    schedule: Schedule
    checkpoints: Checkpoints
    log: MetricLog
    terminal: Terminal

    def fit(
        self, state: dict, progress: Progress, batches: Iterator[tuple[dict, dict]]
    ) -> tuple[dict, Progress]:
        """Trains until the last step, the end of patience, a SIGTERM or Ctrl-C.

        After either signal the step at hand is finished and saved. A second Ctrl-C does not wait
        for that.

        Args:
          state: Training state; donated.
          progress: Where it stands; updated in place.
          batches: Yields (batch on the devices, state of the stream after it).

        Returns:
          Both, as they are in the last checkpoint.

        Raises:
          NonFiniteError: At a loss or gradient that is not finite, with the step.
          KeyboardInterrupt: After a Ctrl-C, with the state on its way to the disk; at once after
            two.
        """
        began = time.monotonic() - progress.train_seconds
        running = collections.deque()  # steps that the device may still be at work on
        with signals() as received:
            stop = False
            while not (stop or self.finished(progress)):
                batch, progress.input_state = next(batches)
                with jax.transfer_guard("disallow"):
                    state, metrics = self.train_step(state, batch)
                progress.step += 1
                running.append((progress.step, metrics))
                self.terminal.advance()
                stop = bool(received) or multihost_utils.reached_preemption_sync_point(
                    progress.step
                )

                # Looking at the step before, while this one runs, never keeps the device waiting.
                allowed = 0 if stop or self.schedule.reports(progress.step) else 1
                while len(running) > allowed:
                    grad_norm = self.add_loss(progress, *running.popleft())

                if stop or self.schedule.reports(progress.step):
                    self.report(progress, state, grad_norm, began, stop=stop)
        if signal.SIGINT in received:
            raise KeyboardInterrupt(saved_after(progress.step))
        if received and self.finished(progress):
            stop_late([self])
        return state, progress

    def report(
        self, progress: Progress, state: dict, grad_norm: float, began: float, *, stop: bool
    ) -> None:
        """Logs, evaluates and saves, as far as that is due.

        Args:
          progress: Of a run whose losses are all added up.
          state: Of the run.
          grad_norm: Of its last step.
          began: When it would have begun by the monotonic clock, had it never been stopped.
          stop: Whether this is its last step for now; then it is saved anyway.
        """
        if self.schedule.logs(progress.step):
            self._log_loss(progress, grad_norm)
        if self.schedule.evaluates(progress.step):
            self._evaluate(progress, state["params"])
        if stop or self.schedule.saves(progress.step):
            progress.train_seconds = time.monotonic() - began
            self._save(state, progress)

    def finished(self, progress: Progress) -> bool:
        """Tells whether there is nothing left to train."""
        return self.schedule.ends(progress)

    def add_loss(self, progress: Progress, step: int, metrics: dict) -> float:
        """Waits for a step, adds up its loss, and returns the norm of its gradients.

        Raises:
          NonFiniteError: At a loss or gradient that is not finite.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(map(math.isfinite, values.values())):
            raise NonFiniteError(
                f"loss or gradient is not finite at step {step}: mean loss "
                f"{values['loss_sum'] / max(values['count'], 1.0)}, norm of the gradients "
                f"{values['grad_norm']}; checkpoints of earlier steps are kept"
            )
        progress.loss_sum += values["loss_sum"]
        progress.count += values["count"]
        return values["grad_norm"]

    def _log_loss(self, progress: Progress, grad_norm: float) -> None:
        loss = progress.loss_sum / max(progress.count, 1.0)
        values = {"loss": loss, "grad_norm": grad_norm, "targets": progress.count}
        self.log.write(progress.step, "train", values)
        self.terminal.report(progress.step, loss, progress.count)
        progress.loss_sum = progress.count = 0.0

    def _evaluate(self, progress: Progress, params: object) -> None:
        metric = self.schedule.metric
        with self.terminal.paused():
            metrics = self.evaluate(params)
        self.log.write(progress.step, "valid", metrics)
        is_best = metrics[metric] > progress.best_metrics.get(metric, -math.inf)
        if is_best:
            progress.best_step, progress.best_metrics = progress.step, metrics
        counts = not is_best and progress.step > self.schedule.warmup
        progress.stale_evaluations = progress.stale_evaluations + 1 if counts else 0
        best = "best so far" if is_best else f"best is step {progress.best_step:,}"
        loss = f"  loss {metrics['loss']:.4f}" if "loss" in metrics else ""
        found = f"valid {metric} {metrics[metric]:.4f}{loss}"
        self.terminal.say(f"step {progress.step:,}  {found}  ({best})")

    def _save(self, state: dict, progress: Progress) -> None:
        self.checkpoints.save(
            progress.step, state, dataclasses.asdict(progress), best_step=progress.best_step
        )


def saved_after(step: int) -> str:
    """Says how a run that was stopped goes on."""
    return f"stopped after step {step:,}; run the same command to go on"


def stop_late(trainers: Iterable[Trainer]) -> None:
    """Passes on a SIGTERM that came while the last step was taken, when all is saved.

    Args:
      trainers: Of runs that are finished, but for their test.
    """
    for trainer in trainers:
        trainer.checkpoints.wait()
    signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGTERM and the first Ctrl-C, so that a step can be finished and saved.

    Of several processes any may get the signal. JAX then finds a step that all of them can stop
    after, and is not to be kept from noticing.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        yield received
        return

    def receive(number, frame):
        if number in received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        received.append(number)

    previous = {
        number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def on_devices(
    stream: TrainStream, mesh: jax.sharding.Mesh, depth: int = 2
) -> Iterator[tuple[dict, dict]]:
    """Yields (batch on the devices, state of the stream after it), `depth` batches ahead.

    Args:
      stream: This host's part of every batch.
      mesh: Devices over which batches are split.
      depth: Batches on their way to the devices while one is used.
    """
    ahead = collections.deque()
    for batch in stream:
        ahead.append((sharding.put_batch(batch, mesh), stream.get_state()))
        if len(ahead) > depth:
            yield ahead.popleft()
