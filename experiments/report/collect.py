"""Reads the runs that a page is about."""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from blossom_jax.errors import UserError
from experiments import _workdir
from experiments.sweep import comparison, folder
from experiments.sweep.runs import Run

_METRIC = "full/ndcg@10"


class Series(NamedTuple):
    """Runs that differ in nothing but their seed.

    Attributes:
      name: In legends and tables.
      runs: At least one.
    """

    name: str
    runs: list[Run]


class Found(NamedTuple):
    """What a page shows.

    Attributes:
      series: In the order of the table.
      lines: What the table says of each series, likewise.
      metric: That is drawn.
      reference: Name of the series that the others are compared with; "" = none.
    """

    series: list[Series]
    lines: list[comparison.Line]
    metric: str
    reference: str


def collect(workdirs: Sequence[pathlib.Path], metric: str | None) -> Found:
    """Reads finished runs.

    Args:
      workdirs: Folders of runs and of sweeps.
      metric: To draw; None takes that of the first sweep, else full/ndcg@10.

    Raises:
      UserError: A folder without a finished run, or a metric that a run lacks.
    """
    series, lines, reference = [], [], ""
    for workdir in workdirs:
        if folder.is_sweep(workdir):
            sweep, rows = folder.read_runs(workdir)
            own = [Series(name, runs) for name, runs in rows.items() if runs]
            metric = metric or sweep.metric
            reference = reference or sweep.reference
            lines += comparison.compare(rows, sweep.reference, metric)
        else:
            own = [_single(workdir)]
            lines += comparison.compare({own[0].name: own[0].runs}, "", metric or _METRIC)
        if not own:
            raise UserError(f"{workdir} holds no finished run yet")
        series += own
    metric = metric or _METRIC
    for each in series:
        if missing := [run for run in each.runs if metric not in run.results["test"]]:
            known = ", ".join(missing[0].results["test"])
            raise UserError(f"{missing[0].folder} has no test metric {metric}; it has {known}")
    return Found(series, lines, metric, reference)


def _single(workdir: pathlib.Path) -> Series:
    results = _workdir.read_results(workdir)
    if results is None:
        raise UserError(f"{workdir} holds no finished run, which results.json would mark, or sweep")
    name = f"{workdir.resolve().name} ({results['model']})"
    return Series(name, [Run(name, {}, workdir, results)])


def read_log(run: Run) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl; none if there is no such file."""
    path = run.folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
