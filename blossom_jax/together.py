"""Several runs that differ in nothing but their seed, trained as one program.

Each has its own initial weights, order of data and dropout, its own evaluations, best step and end
of patience, and its own folder, which holds what it would hold if it had been trained alone.
"""

import collections
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from blossom_jax.schedule import Progress
from blossom_jax.trainer import Trainer, saved_after, signals, stop_late

Batches = Iterator[tuple[dict, dict]]  # as `trainer.on_devices` yields them


def vmap_step(step: Callable) -> jax.stages.Wrapped:
    """Makes a training step work on states, batches and seeds that are stacked on a first axis.

    Args:
      step: `(state, batch, seed, cumulative_counts) -> (state, metrics)`, from `make_train_step`;
        the counts are the same for all.

    Returns:
      The same for all of them; the states are donated.
    """
    return jax.jit(jax.vmap(step, in_axes=(0, 0, 0, None)), donate_argnums=0)


def stacked_like(tree: Any, num: int) -> Any:
    """Describes `num` of a tree of ShapeDtypeStructs, stacked on a first axis; on one device."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((num, *leaf.shape), leaf.dtype, sharding=leaf.sharding),
        tree,
    )


def fit_together(
    step: Callable[[dict, dict], tuple[dict, dict]],
    trainers: Sequence[Trainer],
    states: Sequence[dict],
    progresses: Sequence[Progress],
    batches: Sequence[Batches],
) -> list[dict]:
    """Trains until every run has ended, or a signal comes, as `Trainer.fit` does for one.

    A run that has ended is computed on until the last one has, to no effect.

    Args:
      step: Takes stacked states and batches; donates the states.
      trainers: One for each run; their own steps are not used.
      states: Training state of each run, wherever each stands.
      progresses: Likewise; updated in place.
      batches: Of each run.

    Returns:
      The state of each run when it ended.

    Raises:
      NonFiniteError: At a loss or gradient of any run that is not finite.
      KeyboardInterrupt: After a Ctrl-C, when all are saved.
    """
    began = [time.monotonic() - progress.train_seconds for progress in progresses]
    last = list(states)
    stacked = _stack(states)
    running = collections.deque()  # steps that the device may still be at work on
    with signals() as received:
        stop = False
        while not (stop or all(map(Trainer.finished, trainers, progresses))):
            drawn = [next(each) for each in batches]
            stacked, metrics = step(stacked, _stack([batch for batch, _ in drawn]))
            stop = bool(received)
            going = _count_step(trainers, progresses, drawn)
            reporting = [
                k for k, step in going.items() if stop or trainers[k].schedule.reports(step)
            ]
            running.append((going, metrics))
            while len(running) > (0 if reporting else 1):
                grad_norms = _add_losses(trainers, progresses, *running.popleft())
            for k in reporting:
                last[k] = jax.tree.map(lambda leaf, k=k: leaf[k], stacked)
                trainers[k].report(progresses[k], last[k], grad_norms[k], began[k], stop=stop)
    if signal.SIGINT in received:
        raise KeyboardInterrupt(saved_after(max(progress.step for progress in progresses)))
    if received and all(map(Trainer.finished, trainers, progresses)):
        stop_late(trainers)
    return last


def _count_step(
    trainers: Sequence[Trainer], progresses: Sequence[Progress], drawn: Sequence[tuple[dict, dict]]
) -> dict[int, int]:
    """Counts a step for the runs that have not ended; returns its number in each by run."""
    going = {}
    for k, (trainer, progress) in enumerate(zip(trainers, progresses, strict=True)):
        if not trainer.finished(progress):
            progress.step += 1
            progress.input_state = drawn[k][1]
            trainer.terminal.advance()
            going[k] = progress.step
    return going


def _add_losses(
    trainers: Sequence[Trainer], progresses: Sequence[Progress], going: dict[int, int], metrics
) -> dict[int, float]:
    """Waits for a step and adds up its losses; returns the norms of the gradients by run."""
    metrics = jax.device_get(metrics)
    return {
        k: trainers[k].add_loss(progresses[k], step, {n: v[k] for n, v in metrics.items()})
        for k, step in going.items()
    }


@jax.jit
def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
