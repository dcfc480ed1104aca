"""The runs of a sweep: where they are, and how those of one row are tuned and trained.

A run is a folder as `experiments.train` leaves it, `WORKDIR/ROW/POINT/seed_N`, where POINT are the
values of the grid; without a grid there is none.
"""

import contextlib
import pathlib
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections

from blossom_jax.together import fit_together
from experiments import _plan, _setup, _workdir, train
from experiments.sweep.definition import Sweep, Values, with_values


class Run(NamedTuple):
    """A finished run.

    Attributes:
      row: Name of its row.
      point: Values of the grid.
      folder: Where it is.
      results: What stands in its results.json.
    """

    row: str
    point: Values
    folder: pathlib.Path
    results: dict


def run_folder(workdir: pathlib.Path, row: str, point: Values, seed: int) -> pathlib.Path:
    """Returns the folder of one run."""
    names = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())
    return workdir / row / names / f"seed_{seed}"


def train_row(
    sweep: Sweep,
    row: str,
    config: ml_collections.ConfigDict,
    seeds: Sequence[int],
    workdir: pathlib.Path,
    *,
    together: bool,
) -> bool:
    """Tunes a row with the first seeds, and trains the winner with all; resumes what was begun.

    Args:
      sweep: Names the rows and the grid.
      row: Its name.
      config: That all rows begin from.
      seeds: Of the runs.
      workdir: Folder of the sweep.
      together: Whether seeds are trained as one program.

    Returns:
      Whether the row is complete; False after a SIGTERM.

    Raises:
      UserError: Whatever makes a run impossible.
    """
    for trial in range(sweep.num_trials):
        if not train_trial(sweep, row, trial, config, seeds, workdir, together=together):
            return False
    best = winner(sweep, workdir, row, seeds, config.eval.metric)
    assert best is not None  # all were trained
    config = with_values(config, sweep.rows[row] | best)
    return _train_seeds(config, workdir, row, best, seeds, together)


def train_trial(
    sweep: Sweep,
    row: str,
    trial: int,
    config: ml_collections.ConfigDict,
    seeds: Sequence[int],
    workdir: pathlib.Path,
    *,
    together: bool,
) -> bool:
    """Trains a row at one point of the grid with the first seeds; see `train_row`.

    Args:
      sweep: Names the rows and the grid.
      row: Name of the row.
      trial: Number of the point.
      config: That all rows begin from.
      seeds: Of the runs; the first `sweep.tuning_seeds` are trained.
      workdir: Folder of the sweep.
      together: Whether seeds are trained as one program.

    Returns:
      Whether it is complete; False after a SIGTERM.
    """
    point = sweep.points()[trial]
    config = with_values(config, sweep.rows[row] | point)
    return _train_seeds(config, workdir, row, point, seeds[: sweep.tuning_seeds], together)


def winner(
    sweep: Sweep, workdir: pathlib.Path, row: str, seeds: Sequence[int], metric: str
) -> Values | None:
    """Returns the point of the grid with the best validation metric; None before all are trained.

    That is the mean over the seeds that every point is trained with.

    Args:
      sweep: Names the grid.
      workdir: Folder of the sweep.
      row: Name of the row.
      seeds: Of the runs.
      metric: Of validation, higher is better.
    """
    points, reached = sweep.points(), []
    if not sweep.num_trials:
        return points[0]
    for point in points:
        folders = [run_folder(workdir, row, point, seed) for seed in seeds[: sweep.tuning_seeds]]
        found = [
            results for each in folders if (results := _workdir.read_results(each)) is not None
        ]
        if len(found) < len(folders):
            return None
        reached.append(statistics.fmean(each["valid"][metric] for each in found))
    return points[reached.index(max(reached))]


def _train_seeds(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    row: str,
    point: Values,
    seeds: Sequence[int],
    together: bool,
) -> bool:
    """Trains the seeds that are not finished; returns whether all are."""
    folders = {}
    for seed in seeds:
        folder = run_folder(workdir, row, point, seed)
        _workdir.check_config(folder, with_values(config, {"seed": seed}))
        if results := _workdir.read_results(folder):
            _setup.check_finished(config, results)
        else:
            folders[seed] = folder
            print(f"{row} {point or ''} seed {seed}: {folder}", flush=True)
    if not folders:
        return True
    config = with_values(config, {"seed": min(folders)})
    if together and len(folders) > 1:
        return _train_as_one_program(_plan.make_plan(config, len(folders)), folders)
    plan = _plan.make_plan(config)
    return all(train.run(_plan.with_seed(plan, seed), each) for seed, each in folders.items())


def _train_as_one_program(plan: _plan.Plan, folders: dict[int, pathlib.Path]) -> bool:
    plans = [_plan.with_seed(plan, seed) for seed in folders]
    seeds = _plan.place_seed([*folders], plan.mesh)
    with contextlib.ExitStack() as stack:
        begun = [
            stack.enter_context(train.started(each, folder, shows=each is plans[0]))
            for each, folder in zip(plans, folders.values(), strict=True)
        ]
        trainers, states, progresses, batches = map(list, zip(*begun, strict=True))
        states = fit_together(
            lambda state, batch: plan.step(state, batch, seeds),
            trainers,
            states,
            progresses,
            batches,
        )
        ended = [
            train.finish(*of_run, trained_together=len(plans))
            for of_run in zip(plans, begun, states, folders.values(), strict=True)
        ]
    return None not in ended


def finished(
    sweep: Sweep,
    workdir: pathlib.Path,
    row: str,
    seeds: Sequence[int],
    metric: str,
) -> list[Run]:
    """Returns the runs of a row that are there, of the winner of the grid alone.

    Args:
      sweep: Names the grid.
      workdir: Folder of the sweep.
      row: Name of the row.
      seeds: Of the runs; the first ones chose the winner.
      metric: Of validation, that chose it.
    """
    point = winner(sweep, workdir, row, seeds, metric)
    if point is None:
        return []
    folders = [run_folder(workdir, row, point, seed) for seed in seeds]
    return [
        Run(row, point, folder, results)
        for folder in folders
        if (results := _workdir.read_results(folder)) is not None
    ]
