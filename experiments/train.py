"""Trains a model on a data set, and evaluates the best checkpoint once on the test targets.

    python -m experiments.train --config=configs/yelp.py --workdir=runs/yelp

Any value of the config can be set on the command line, as --config.train.learning_rate=3e-4. The
same command again resumes a run that was stopped, or prints the results of a finished one.

A run that was stopped, even by kill -9, leaves the same metrics.jsonl as one that was not, to the
bit, and the same results.json but for train_seconds, which is measured. On a GPU that takes
XLA_FLAGS=--xla_gpu_deterministic_ops=true: by default XLA adds up there in any order.
"""

import contextlib
import difflib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from blossom_jax import memory, sharding
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.data import Interactions, Split
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.errors import UserError
from blossom_jax.evaluate import Evaluator
from blossom_jax.metric_log import MetricLog, Terminal
from blossom_jax.model import num_params
from blossom_jax.train_step import (
    State,
    abstract_params,
    abstract_state,
    init_state,
    make_train_step,
)
from blossom_jax.trainer import Progress, Schedule, Trainer, on_devices
from experiments import _cli, _evaluation, _results, _setup, _workdir


def main(argv: Sequence[str]) -> None:
    """Trains, resumes, or prints what a finished run found."""
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of this run")
    arguments = _cli.parse_with_config(parser, argv)
    workdir = pathlib.Path(arguments.workdir)
    _workdir.check_config(workdir, arguments.config)
    results = _workdir.read_results(workdir) or train(arguments.config, workdir)
    if results:
        print(_results.describe_run(results))


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict | None:
    """Trains a model in a folder, from wherever an earlier part of the run left it.

    Args:
      config: As `configs/common.py` describes it.
      workdir: Folder of the run.

    Returns:
      What stands in results.json, or None if a SIGTERM stopped the run before its end.

    Raises:
      UserError: Something in the config or the data; the folder is left as it was.
      NonFiniteError: A loss or gradient that is not finite.
    """
    plan = _plan(config)
    _workdir.write_config(workdir, config)
    with contextlib.closing(plan.stream), _checkpoints(workdir) as checkpoints:
        state, progress = _start_or_resume(plan, checkpoints)
        with _logs(workdir, progress.step, plan.schedule.num_steps) as (log, terminal):
            terminal.say(_describe(plan, progress))
            evaluator = _evaluation.make_evaluator(
                config, plan.graphdef, plan.interactions.num_items, plan.mesh
            )
            trainer = Trainer(
                plan.step,
                lambda params: plan.valid.summarize(plan.valid.rank(evaluator, params)),
                plan.schedule,
                checkpoints,
                log,
                terminal,
            )
            batches = on_devices(plan.stream, plan.mesh)
            state, progress = trainer.fit(state, progress, batches)
            if not trainer.finished(progress):
                terminal.say(f"stopped after step {progress.step:,}; run the same command to go on")
                return None
            params = checkpoints.restore_params(progress.best_step, plan.like["params"])
            if params is None:
                terminal.say(f"the parameters after step {progress.step:,} are tested instead")
                params = state["params"]
            results = _test(plan, evaluator, params, progress)
            log.write(progress.step, "test", results["test"])
            _workdir.write_results(workdir, results)
    return results


class _Plan(NamedTuple):
    """A run that was found to be possible, of which nothing is on the devices yet."""

    config: ml_collections.ConfigDict
    interactions: Interactions
    split: Split
    mesh: jax.sharding.Mesh
    stream: TrainStream
    schedule: Schedule
    graphdef: nnx.GraphDef
    like: State  # described
    init: Callable[[], State]
    step: Callable[[State, dict], tuple[State, dict]]
    valid: _evaluation.Evaluation


def _plan(config: ml_collections.ConfigDict) -> _Plan:
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed must lie in [0, 2**32), got {config.seed}")
    if config.train.loss_chunk < 1:
        raise UserError(f"train.loss_chunk must be at least 1, got {config.train.loss_chunk}")
    interactions, split = _setup.load_data(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    sharding.check_batch(config.train.batch_rows, mesh)
    valid = _evaluation.Evaluation(config, interactions, split, "valid", mesh)
    if config.eval.metric not in (measured := valid.popularity()):
        nearest = difflib.get_close_matches(config.eval.metric, measured, n=1, cutoff=0.0)
        raise UserError(f"eval.metric={config.eval.metric}: did you mean {nearest[0]}?")
    stream = _setup.make_stream(config, interactions, split)
    schedule = _setup.make_schedule(config, stream.steps_per_epoch)
    optimizer = _setup.make_optimizer(config, schedule.num_steps)
    make_model = _setup.model_maker(config, interactions.num_items)
    graphdef, _ = abstract_params(make_model, mesh)
    like = abstract_state(make_model, optimizer, mesh)
    step = make_train_step(
        graphdef,
        optimizer,
        mesh,
        like,
        num_items=interactions.num_items,
        loss_chunk=config.train.loss_chunk,
    )
    return _Plan(
        config,
        interactions,
        split,
        mesh,
        stream,
        schedule,
        graphdef,
        like,
        lambda: init_state(make_model, optimizer, like),
        _compile(step, like, config, mesh),
        valid,
    )


def _compile(step: jax.stages.Wrapped, like: State, config, mesh) -> Callable:
    """Compiles the step for the only shapes that there are; refuses one that does not fit."""
    shape = config.train.batch_rows, config.data.row_length
    devices = list(mesh.devices.flat)
    rows_per_device = config.train.batch_rows // mesh.shape[sharding.DATA]
    # The compiler finds out what is needed to the byte, but may fail at absurd sizes; so first
    # what is needed at least: the state, the gradients, and each layer's input for each token.
    hidden = rows_per_device * config.data.row_length * config.model.hidden_size
    at_least = (
        memory.shard_bytes(like)
        + memory.shard_bytes(like["params"])
        + hidden * config.model.num_layers * jnp.dtype(config.model.dtype).itemsize
    )
    memory.check_fits("a training step", at_least, devices)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
        for name in ("item_ids", "targets", "positions")
    }
    seed = jax.device_put(np.uint32(config.seed), sharding.replicated(mesh))
    compiled = step.lower(like, batch, seed).compile()
    memory.check_fits("a training step", memory.program_bytes(compiled), devices)
    return lambda state, batch: compiled(state, batch, seed)


@contextlib.contextmanager
def _checkpoints(workdir: pathlib.Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(workdir / "checkpoints", report=lambda line: print(line, flush=True))
    with contextlib.closing(checkpoints):
        yield checkpoints


@contextlib.contextmanager
def _logs(workdir: pathlib.Path, step: int, num_steps: int) -> Iterator[tuple[MetricLog, Terminal]]:
    """Opens what the first process writes to, and the others do not."""
    writes = jax.process_index() == 0
    log = MetricLog(workdir, step, writes=writes)
    with contextlib.closing(log), open(os.devnull, "w") as nowhere:
        terminal = Terminal(step, num_steps, sys.stderr if writes else nowhere)
        with contextlib.closing(terminal):
            yield log, terminal


def _start_or_resume(plan: _Plan, checkpoints: Checkpoints) -> tuple[State, Progress]:
    restored = checkpoints.restore_latest(plan.like)
    if restored is None:
        return plan.init(), Progress(plan.interactions.content_hash, plan.stream.get_state())
    state, progress = restored[0], Progress(**restored[1])
    _setup.check_data(plan.interactions, progress.data)
    plan.stream.set_state(progress.input_state)
    return state, progress


def _describe(plan: _Plan, progress: Progress) -> str:
    log, config, metric = plan.interactions, plan.config, plan.config.eval.metric
    begun = f"resuming after step {progress.step:,}; " if progress.step else ""
    return (
        f"{begun}{log.name}: {log.num_users:,} users, {log.num_items:,} items, {log.num_events:,} "
        f"events; {plan.split.card['rule']}, {len(plan.split.valid.users):,} users in validation, "
        f"{len(plan.split.test.users):,} in test. {config.model.attention} attention, "
        f"{_count_params(plan):,} parameters, on {_devices(plan.mesh)}. Rows of "
        f"{config.data.row_length} tokens, {plan.stream.fill:.1%} full; {config.train.batch_rows} "
        f"rows a step, {plan.stream.steps_per_epoch:,} steps an epoch, {plan.schedule.num_steps:,} "
        f"in all. Popularity has {metric} {plan.valid.popularity()[metric]:.4f} in validation."
    )


def _test(plan: _Plan, evaluator: Evaluator, params: nnx.State, progress: Progress) -> dict:
    """Asks the test questions, once; returns what stands in results.json."""
    test = _evaluation.Evaluation(
        plan.config, plan.interactions, plan.split, "test", plan.mesh, with_coverage=True
    )
    ranks = test.rank(evaluator, params)
    return {
        "dataset": plan.interactions.name,
        "model": plan.config.model.attention,
        "num_users": plan.interactions.num_users,
        "num_items": plan.interactions.num_items,
        "num_params": _count_params(plan),
        "steps": progress.step,
        "best_step": progress.best_step,
        "seed": plan.config.seed,
        "jax": jax.__version__,
        "device": _devices(plan.mesh),
        "commit": _workdir.git_commit(),
        "train_seconds": progress.train_seconds,
        "valid": progress.best_metrics,
        "test": test.summarize(ranks),
        "test_by_length": test.by_length(ranks),
        "test_by_popularity": test.by_popularity(ranks),
        "popularity": test.popularity(),
        "protocol": plan.split.card,
        "data": plan.interactions.card,
    }


def _count_params(plan: _Plan) -> int:
    return num_params(nnx.merge(plan.graphdef, plan.like["params"]))


def _devices(mesh: jax.sharding.Mesh) -> str:
    kind = mesh.devices.flat[0].device_kind
    return kind if mesh.size == 1 else f"{mesh.size} x {kind}"


if __name__ == "__main__":
    _cli.run(main)
