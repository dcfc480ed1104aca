"""The files of a sweep's folder: sweep.json, and runs.jsonl and summary.json made of its runs."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

from blossom_jax.errors import UserError
from experiments.sweep import comparison, runs
from experiments.sweep.definition import Sweep

_DEFINITION = "sweep.json"


def is_sweep(workdir: pathlib.Path) -> bool:
    """Tells whether a folder is that of a sweep."""
    return (workdir / _DEFINITION).exists()


def write_definition(
    workdir: pathlib.Path, sweep: Sweep, seeds: Sequence[int], metric: str
) -> None:
    """Writes what was asked for last; rows and seeds may be added from call to call.

    Args:
      workdir: Folder of the sweep.
      sweep: What its file says.
      seeds: Of the runs.
      metric: Of validation, that chooses the winner of the grid.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    values = {"sweep": dataclasses.asdict(sweep), "seeds": list(seeds), "chosen_by": metric}
    _write(workdir / _DEFINITION, json.dumps(values, indent=2) + "\n")


def read_runs(workdir: pathlib.Path) -> tuple[Sweep, dict[str, list[runs.Run]]]:
    """Returns the sweep of a folder, and its finished runs by name of row.

    Raises:
      UserError: The folder holds no sweep, or a damaged one.
    """
    path = workdir / _DEFINITION
    try:
        values = json.loads(path.read_text())
        sweep, seeds = Sweep(**values["sweep"]), values["seeds"]
        metric = values["chosen_by"]
    except OSError as error:
        raise UserError(f"{workdir} holds no sweep: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; the sweep's command writes it") from error
    return sweep, {row: runs.finished(sweep, workdir, row, seeds, metric) for row in sweep.rows}


def summarize(workdir: pathlib.Path) -> str:
    """Writes runs.jsonl, one line a run, and summary.json; returns the table as text."""
    sweep, found = read_runs(workdir)
    lines = comparison.compare(found, sweep.reference, sweep.metric)
    every = [run for row in found.values() for run in row]
    _write(workdir / "runs.jsonl", "".join(json.dumps(_of_run(run)) + "\n" for run in every))
    summary = [dataclasses.asdict(line) for line in lines]
    _write(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    parts = []
    if lines:
        parts.append(comparison.describe(lines, sweep.reference, sweep.metric))
    if sweep.grid:
        won = (f"{line.row}: {_describe_point(line.point)}" for line in lines)
        parts.append("\n".join([f"winners of {len(sweep.points())} trials a row", *won]))
    if missing := [row for row, finished in found.items() if not finished]:
        parts.append(f"not run yet: {', '.join(missing)}")
    return "\n\n".join(parts)


def _of_run(run: runs.Run) -> dict:
    kept = ("seed", "best_step", "steps", "num_params", "train_seconds", "device", "jax", "commit")
    values = {name: run.results[name] for name in kept}
    return {"row": run.row, **run.point, **values, "folder": str(run.folder), **run.results["test"]}


def _describe_point(point: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in point.items())


def _write(path: pathlib.Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
