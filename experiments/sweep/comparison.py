"""Compares the rows of a sweep with its reference, and shows what came of it."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from blossom_jax import metrics, statistics
from experiments import _columns, _ranks
from experiments.sweep.runs import Run

MARGIN = 0.02  # of the reference: what a model may lose and still be called not worse
ALPHA = 1 - statistics.LEVEL
SHOWN = ("full/ndcg@10", "full/recall@10", "full_keep/ndcg@10", "full_keep/recall@10")


@dataclasses.dataclass(frozen=True)
class Line:
    """What the runs of one row say; JSON values only.

    Attributes:
      row: Its name.
      seeds: Of the runs.
      point: Values of the grid that won.
      metrics: {name: (mean, half width of the 95% interval over seeds)} of the test.
      seconds: Mean time to train a seed.
      num_params: Of the model.
      comparison: Fields of `statistics.Comparison` with the reference; None for the reference, and
        for runs that cannot be compared.
      p_holm: Its p-value among all of the table.
      detectable: Difference that would have been noticed with a chance of 80%.
      verdict: In words.
    """

    row: str
    seeds: list[int]
    point: dict
    metrics: dict[str, tuple[float, float]]
    seconds: float
    num_params: int
    comparison: dict[str, float] | None = None
    p_holm: float | None = None
    detectable: float | None = None
    verdict: str = ""


def compare(rows: dict[str, list[Run]], reference: str, metric: str) -> list[Line]:
    """Returns a line for every row that has runs.

    Args:
      rows: Finished runs by name of row.
      reference: Name of the row that the others are compared with.
      metric: Of the test, as "full/ndcg@10".
    """
    lines = {name: _summarize(runs) for name, runs in rows.items() if runs}
    if reference not in lines:
        return list(lines.values())
    users, ours = _gains(rows[reference], metric)
    compared = {}
    for name in lines:
        if name == reference:
            lines[name] = dataclasses.replace(lines[name], verdict="reference")
            continue
        their_users, theirs = _gains(rows[name], metric)
        if np.array_equal(users, their_users):
            compared[name] = statistics.paired_bootstrap(theirs, ours)
        else:
            lines[name] = dataclasses.replace(lines[name], verdict="asks other users")
    adjusted = statistics.holm([comparison.p_value for comparison in compared.values()])
    for (name, comparison), p in zip(compared.items(), adjusted, strict=True):
        lines[name] = dataclasses.replace(
            lines[name],
            comparison=dataclasses.asdict(comparison),
            p_holm=p,
            detectable=statistics.detectable_difference(comparison.standard_error, len(compared)),
            verdict=_verdict(comparison, p, float(ours.mean())),
        )
    return list(lines.values())


def _summarize(runs: Sequence[Run]) -> Line:
    names = set.intersection(*(set(run.results["test"]) for run in runs))
    return Line(
        row=runs[0].row,
        seeds=[run.results["seed"] for run in runs],
        point=runs[0].point,
        metrics={
            name: statistics.mean_interval([run.results["test"][name] for run in runs])
            for name in runs[0].results["test"]
            if name in names
        },
        seconds=float(np.mean([train_seconds(run.results) for run in runs])),
        num_params=runs[0].results["num_params"],
    )


def train_seconds(results: dict) -> float:
    """Returns what one run took to train: its share, if several seeds were trained together."""
    return results["train_seconds"] / results.get("trained_together", 1)


def _gains(
    runs: Sequence[Run], metric: str
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "seeds n"]]:
    """Returns the users that all runs asked, and what each adds to the metric in each run."""
    protocol, _, name = metric.partition("/")
    users, ranks = zip(*(_ranks.read(run.folder, protocol) for run in runs), strict=True)
    return users[0], metrics.gains_from_ranks(np.stack(ranks), name)


def _verdict(comparison: statistics.Comparison, p: float, reference: float) -> str:
    if p < ALPHA:
        return "better" if comparison.difference > 0 else "worse"
    return "not worse" if comparison.low > -MARGIN * reference else "undecided"


def describe(lines: Sequence[Line], reference: str, metric: str) -> str:
    """Returns the lines as a table, with what its words mean."""
    shown = [name for name in (metric, *SHOWN) if all(name in x.metrics for x in lines)]
    shown = list(dict.fromkeys(shown))
    head = ("row", "seeds", *shown, "difference, 95% interval", "p (Holm)", "detectable", "verdict")
    body = [
        (
            line.row,
            str(len(line.seeds)),
            *(interval(*line.metrics[name]) for name in shown),
            *describe_comparison(line),
            line.verdict,
        )
        for line in lines
    ]
    notes = textwrap.fill(explain(lines, reference, metric), width=100)
    return "\n".join([*_columns.align([head, *body]), "", notes])


def explain(lines: Sequence[Line], reference: str, metric: str) -> str:
    """Says what the words of the table mean."""
    notes = (
        f"Differences are of {metric} to {reference}: paired bootstrap over users and seeds, "
        f"10,000 samples. Better or worse: p < {ALPHA:.2g} after Holm's correction for all rows. "
        f"Not worse: the interval lies above -{MARGIN:.0%} of {reference}. Detectable: the true "
        f"difference that would have been noticed with a chance of {statistics.POWER:.0%}."
    )
    if any(len(line.seeds) == 1 for line in lines):
        notes += " A single seed says nothing about others: give --seeds at least 3."
    return notes


def describe_comparison(line: Line) -> tuple[str, str, str]:
    """Returns difference and interval, p-value, and what would have been noticed; "" without."""
    if line.comparison is None:
        return "", "", ""
    c = line.comparison
    return (
        f"{c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]",
        f"{line.p_holm:.4f}",
        f"{line.detectable:.4f}",
    )


def interval(mean: float, half: float) -> str:
    """Returns "mean ± half width"; the mean alone where there is no interval."""
    return f"{mean:.4f}" if math.isnan(half) else f"{mean:.4f} ± {half:.4f}"
