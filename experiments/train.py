"""Trains a model on a data set, and evaluates the best checkpoint once on the test targets.

    python -m experiments.train --config=configs/yelp.py --workdir=runs/yelp

Any value of the config can be set on the command line, as --config.train.learning_rate=3e-4. The
same command again resumes a run that was stopped, or prints the results of a finished one.

A run that was stopped, even by kill -9, leaves the same metrics.jsonl as one that was not, to the
bit, and the same results.json but for train_seconds, which is measured. On a GPU that takes
XLA_FLAGS=--xla_gpu_deterministic_ops=true: by default XLA adds up there in any order.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import ml_collections
from flax import nnx

from blossom_jax import hosts
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.metric_log import MetricLog, Terminal
from blossom_jax.model import num_params
from blossom_jax.schedule import Progress
from blossom_jax.train_step import State
from blossom_jax.trainer import Trainer, on_devices, saved_after
from experiments import (
    _cli,
    _compile_cache,
    _continue,
    _distributed,
    _ranks,
    _record,
    _results,
    _setup,
    _stop,
    _workdir,
)
from experiments._plan import Plan, make_plan


def main(argv: Sequence[str]) -> None:
    """Trains, resumes, or prints what a finished run found."""
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--workdir", required=True, type=_cli.folder, metavar="DIR", help="folder of this run"
    )
    _distributed.add_arguments(parser)
    arguments = _cli.parse_with_config(parser, argv)
    _compile_cache.enable()
    workdir = pathlib.Path(arguments.workdir)
    with _distributed.joined(arguments), _stop.exits_at_signals():
        _workdir.check_same(workdir, arguments.config)
        hosts.together(lambda: _workdir.check_config(workdir, arguments.config))
        results = _workdir.read_results(workdir)
        if results:
            _setup.check_finished(arguments.config, results)
        else:
            results = train(arguments.config, workdir)
        if results and jax.process_index() == 0:
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
      KeyboardInterrupt: A Ctrl-C, after which the run was saved.
    """
    return run(hosts.together(lambda: make_plan(config)), workdir)


def run(plan: Plan, workdir: pathlib.Path) -> dict | None:
    """Trains as `train` does, by a plan that is made already."""
    with started(plan, workdir) as begun:
        state, _ = begun.trainer.fit(begun.state, begun.progress, begun.batches)
        return finish(plan, begun, state, workdir)


class Started(NamedTuple):
    """A run that is ready for its next step."""

    trainer: Trainer
    state: State
    progress: Progress
    batches: Iterator[tuple[dict, dict]]


@contextlib.contextmanager
def started(plan: Plan, workdir: pathlib.Path, *, shows: bool = True) -> Iterator[Started]:
    """Begins or resumes a run.

    Args:
      plan: Of the run.
      workdir: Its folder.
      shows: Whether its progress is shown.
    """
    hosts.check_same({"the data's content hash": plan.interactions.content_hash})
    _workdir.make(workdir)
    with (
        contextlib.closing(plan.stream),
        _workdir.locked(workdir),
        _checkpoints(workdir) as checkpoints,
    ):
        state, progress = _start_or_resume(plan, checkpoints)
        _workdir.write_config(workdir, plan.config)
        _workdir.write_catalogue(workdir, plan.interactions, plan.split)
        logs = _logs(workdir, progress.step, plan.schedule.num_steps, shows)
        with logs as (log, terminal):
            terminal.say(_describe(plan, progress))
            trainer = Trainer(
                lambda state, batch: plan.step(state, batch, plan.seed),
                lambda params: plan.valid.summarize(plan.valid.rank(plan.evaluator, params)),
                plan.schedule,
                checkpoints,
                log,
                terminal,
            )
            yield Started(trainer, state, progress, on_devices(plan.stream, plan.mesh))


def finish(
    plan: Plan, begun: Started, state: State, workdir: pathlib.Path, *, trained_together: int = 1
) -> dict | None:
    """Tests the best checkpoint of a run that has ended, and writes its results.

    Args:
      plan: Of the run.
      begun: From `started`, after training.
      state: At the end of training.
      workdir: Folder of the run.
      trained_together: Runs that shared the time, this one included.

    Returns:
      What stands in results.json; None if the run was stopped before its end.
    """
    trainer, progress = begun.trainer, begun.progress
    if not trainer.finished(progress):
        trainer.terminal.say(saved_after(progress.step))
        return None
    params = trainer.checkpoints.restore_params(progress.best_step, plan.like["params"])
    if params is None:
        trainer.terminal.say(f"the parameters after step {progress.step:,} are tested instead")
        params, progress.best_step = state["params"], progress.step
        progress.best_metrics = trainer.evaluate(params)
    results = _test(plan, params, progress, workdir) | {"trained_together": trained_together}
    trainer.log.write(progress.step, "test", results["test"])
    _workdir.write_results(workdir, results)
    return results


@contextlib.contextmanager
def _checkpoints(workdir: pathlib.Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(workdir / "checkpoints", report=lambda line: print(line, flush=True))
    with contextlib.closing(checkpoints):
        yield checkpoints


@contextlib.contextmanager
def _logs(
    workdir: pathlib.Path, step: int, num_steps: int, shows: bool
) -> Iterator[tuple[MetricLog, Terminal]]:
    """Opens what the first process writes to, and the others do not."""
    writes = jax.process_index() == 0
    log = MetricLog(workdir, step, writes=writes)
    with contextlib.closing(log), open(os.devnull, "w") as nowhere:
        terminal = Terminal(step, num_steps, sys.stderr if writes and shows else nowhere)
        with contextlib.closing(terminal):
            yield log, terminal


def _start_or_resume(plan: Plan, checkpoints: Checkpoints) -> tuple[State, Progress]:
    restored = checkpoints.restore_latest(plan.like)
    if restored is None:
        state = plan.init()
        if plan.config.train.init_from:
            state = _continue.from_run(plan, state)
        return state, Progress(plan.interactions.content_hash, plan.stream.get_state())
    state, progress = restored[0], Progress(**restored[1])
    _setup.check_data(plan.interactions, progress.data)
    plan.stream.set_state(progress.input_state)
    return state, progress


def _describe(plan: Plan, progress: Progress) -> str:
    log, config, metric = plan.interactions, plan.config, plan.config.eval.metric
    model = _setup.model_config(config)
    begun = f"resuming after step {progress.step:,}; " if progress.step else ""
    hint = _setup.dtype_hint(config.model.dtype, plan.mesh.devices.flat[0])
    return (
        f"{begun}{log.name}: {log.num_users:,} users, {log.num_items:,} items, {log.num_events:,} "
        f"events; {plan.split.card['rule']}, {len(plan.split.valid.users):,} users in validation, "
        f"{len(plan.split.test.users):,} in test. {model.name}{_setup.served_by(model)}, "
        f"{_count_params(plan):,} parameters, on {_record.device_name(plan.mesh)}. Rows of "
        f"{config.data.row_length} tokens, {plan.stream.fill:.1%} full; {config.train.batch_rows} "
        f"rows a step, {plan.stream.steps_per_epoch:,} steps an epoch, {plan.schedule.num_steps:,} "
        f"in all. Popularity has {metric} {plan.valid.popularity[metric]:.4f} in validation.{hint}"
    )


def _test(plan: Plan, params: nnx.State, progress: Progress, workdir: pathlib.Path) -> dict:
    """Asks the test questions, once; saves every rank, returns what stands in results.json."""
    ranks = plan.test.rank(plan.evaluator, params)
    _ranks.write(workdir, plan.split.test, ranks)
    return _record.make_record(
        plan.config,
        plan.interactions,
        plan.split,
        plan.mesh,
        plan.test,
        ranks,
        plan.commit,
        model=_setup.model_config(plan.config).name,
        num_params=_count_params(plan),
        step_bytes=plan.step_bytes,
        steps=progress.step,
        best_step=progress.best_step,
        train_seconds=progress.train_seconds,
        valid=progress.best_metrics,
    )


def _count_params(plan: Plan) -> int:
    return num_params(nnx.merge(plan.graphdef, plan.like["params"]))


if __name__ == "__main__":
    _cli.run(main)
