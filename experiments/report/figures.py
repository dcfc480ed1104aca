"""The pictures that are drawn from results.json and metrics.jsonl alone."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blossom_jax import statistics
from experiments.report import collect
from experiments.report.collect import Series
from experiments.sweep.comparison import train_seconds

_COLOURS = ("#b83b6a", "#2f5d8a", "#dba63f", "#86a468", "#9382b4", "#b58a6a", "#4d4d4d", "#5bb0a8")
_MARKERS = "osD^vPX*"


def curves(series: Sequence[Series], metric: str) -> Figure:
    """Draws the loss, and the metric in validation, against steps: a line a run.

    The loss in validation, which is the cross-entropy whatever is trained on, is dashed.
    """
    figure, (loss, valid) = _panels(1, 2, legend=series)
    for style, each in zip(_styles(len(series)), series, strict=True):
        for n, run in enumerate(each.runs):
            line = {"color": style["color"], "linewidth": 1.2, "alpha": 0.9}
            label = each.name if n == 0 else None
            log = collect.read_log(run)
            loss.plot(*_points(log, "train", "loss"), label=label, **line)
            loss.plot(*_points(log, "valid", "loss"), linestyle="--", **line)
            valid.plot(*_points(log, "valid", metric), marker=".", markersize=4, **line)
    _name(loss, "Loss in training; dashed: cross-entropy in validation", "steps")
    _name(valid, f"{metric} in validation", "steps")
    _legend(figure, loss)
    return figure


def _points(log: Sequence[dict], split: str, name: str) -> tuple[list[float], list[float]]:
    found = [(line["step"], line[name]) for line in log if line["split"] == split and name in line]
    return [step for step, _ in found], [value for _, value in found]


def buckets(series: Sequence[Series], metric: str, *, key: str, name: str, title: str) -> Figure:
    """Draws the metric of similar users, with intervals over seeds.

    Args:
      series: Those whose results have such buckets.
      metric: To draw.
      key: Of results.json, as "test_by_length".
      name: Of what is alike in a bucket, "length" or "count".
      title: Of the axis.
    """
    figure, (axes,) = _panels(1, 1, legend=series)
    highest = 0.0
    for n, (style, each) in enumerate(zip(_styles(len(series)), series, strict=True)):
        by_bucket = list(zip(*(run.results[key] for run in each.runs), strict=True))
        beside = 1.03 ** (n - (len(series) - 1) / 2)  # so that bars do not hide each other
        place = [_middle(same[0], name) * beside for same in by_bucket]
        found = [statistics.mean_interval([b[metric] for b in same]) for same in by_bucket]
        mean, half = np.array(found).T
        bars: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1, "markersize": 5}
        axes.errorbar(place, mean, np.nan_to_num(half), label=each.name, **bars, **style)
        highest = max(highest, mean.max())
    first = series[0].runs[0].results[key]
    labels = [f"{_span(b, name)}\n{b['num_users']:,}" for b in first]
    axes.set_xscale("log")
    axes.set_xticks([_middle(b, name) for b in first], labels, fontsize=7.5, minor=False)
    axes.minorticks_off()
    # Intervals of two seeds are so long that nothing else would be seen.
    axes.set_ylim(0, min(axes.get_ylim()[1], 2 * highest or 1))
    _name(axes, f"{metric} of the test", f"{title} (below: users)")
    _legend(figure, axes)
    return figure


def _middle(bucket: dict, name: str) -> float:
    low, high = bucket[f"min_{name}"], bucket[f"max_{name}"]
    return math.sqrt(max(low, 0.5) * max(high, 0.5))


def _span(bucket: dict, name: str) -> str:
    low, high = bucket[f"min_{name}"], bucket[f"max_{name}"]
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def cost(series: Sequence[Series], metric: str) -> Figure:
    """Draws the metric against the time to train one run: a small mark a run, a large one the
    mean."""
    figure, (axes,) = _panels(1, 1, legend=series)
    for style, each in zip(_styles(len(series)), series, strict=True):
        mark = {"color": style["color"], "marker": style["marker"], "linestyle": ""}
        seconds = [train_seconds(run.results) for run in each.runs]
        values = [run.results["test"][metric] for run in each.runs]
        axes.plot(seconds, values, **mark, markersize=4, alpha=0.6)
        label = f"{each.name}, {each.runs[0].results['num_params']:,} parameters"
        axes.plot(np.mean(seconds), np.mean(values), **mark, markersize=10, label=label)
    axes.set_xlim(left=0)
    axes.margins(0.15)
    _name(axes, f"{metric} of the test", "seconds of training, evaluations included")
    _legend(figure, axes)
    return figure


def _styles(number: int) -> list[dict]:
    return [
        {"color": _COLOURS[n % len(_COLOURS)], "marker": _MARKERS[n // len(_COLOURS) % 8]}
        for n in range(number)
    ]


def _panels(rows: int, columns: int, legend: Sequence[object]) -> tuple[Figure, list[Axes]]:
    """Makes panels of equal size, with room below for a legend of so many entries."""
    legend_height = 0.22 * math.ceil(len(legend) / 3)
    figure = Figure(figsize=(9.5, 3.6 * rows + legend_height), layout="constrained", dpi=130)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _name(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(below, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes) -> None:
    handles: Iterable = axes.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
