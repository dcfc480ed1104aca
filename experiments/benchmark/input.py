"""Times the input pipeline, whole and in parts, against the training step that it feeds.

All rates are of tokens that hold an event, in packed batches of the data set's config. Measured are

- shuffle: the new order of an epoch, as its batches share it;
- assemble: putting batches together from the mapped log, without Grain;
- grain: batches as training gets them, from a thread and from worker processes;
- devices: the same, moved to the devices ahead of the step;
- step: the whole training step on one device.

Each is measured alone, so on a machine whose cores all train, the pipeline is to be several times
as fast as the step: `vs step` says how many. The aim is 3 on two cores.
"""

import argparse
import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from blossom_jax import data, sharding
from blossom_jax.data.packing import shuffle
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.data.train_batches import TrainBatches
from blossom_jax.data.windows import training_windows
from blossom_jax.losses import make_loss
from blossom_jax.trainer import on_devices
from experiments import _cli, _setup
from experiments.benchmark import dataset, measure, plot, training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    measure.add_arguments(parser)
    add("--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here")
    add("--plot", metavar="FILE", type=_cli.writable, help="also draw the rates here")
    dataset.add_arguments(parser)
    add("--workers", type=measure.positive, default=2, help="worker processes, 2 by default")
    add("--batches", type=measure.positive, default=32, help="in one timing, 32 by default")


def run(arguments: argparse.Namespace) -> None:
    """Measures every part, prints a table, and draws it if that is asked for."""
    config = dataset.config(arguments)
    interactions, split = _setup.load_data(config)
    with contextlib.ExitStack() as stack:
        calls, tokens = _calls(config, interactions, split, arguments, stack)
        seconds = measure.medians(calls, arguments.rounds)
    report = measure.Report("input", arguments.json, arguments.commit)
    step = tokens["step"] / seconds["step"]
    for name in calls:
        rate = tokens[name] / seconds[name]
        report.add(
            measured=name,
            dataset=arguments.dataset,
            rows=config.train.batch_rows,
            row_length=config.data.row_length,
            tokens=tokens[name],
            seconds=seconds[name],
            tokens_per_second=rate,
            versus_step=rate / step,
        )
    _print(report.records)
    if arguments.plot:
        draw(report.records, arguments.plot)


def _calls(
    config: ml_collections.ConfigDict,
    interactions: data.Interactions,
    split: data.Split,
    arguments: argparse.Namespace,
    stack: contextlib.ExitStack,
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Returns what to time, and the tokens that one call of each serves."""
    windows = training_windows(interactions, split, config.model.max_length, config.train.target)
    shape = {"row_length": config.data.row_length, "batch_rows": config.train.batch_rows}
    order = {"seed": config.seed, "target": config.train.target}
    batches = TrainBatches(interactions, windows, **shape, **order, host=0, num_hosts=1)
    number, mesh = itertools.count(), sharding.make_mesh(1, devices=jax.local_devices()[:1])

    def stream(num_workers: int) -> TrainStream:
        made = TrainStream(interactions, windows, **shape, **order, num_workers=num_workers)
        return stack.enter_context(made)

    def several(source: Iterator) -> Callable[[], Any]:
        return lambda: [next(source) for _ in range(arguments.batches)]

    step = training.make_step(
        _setup.model_maker(config, interactions.num_items),
        _setup.make_optimizer(config, num_steps=10_000),
        make_loss(_setup.loss_config(config), num_items=interactions.num_items, mesh=mesh),
        seed=config.seed,
        lazy_items=_setup.has_lazy_items(config, mesh),
    )
    calls = {
        "shuffle": lambda: (
            shuffle(batches.plan, windows.length, np.random.default_rng(next(number))).windows
        ),
        "assemble": several(batches[index] for index in itertools.count()),
        "grain, a thread": several(stream(0)),
        f"grain, {arguments.workers} workers": several(stream(arguments.workers)),
        "devices, a thread": several(batch for batch, _ in on_devices(stream(0), mesh)),
        "step": step(batches[0]).call,
    }
    all_tokens = float(windows.length.sum())
    tokens = dict.fromkeys(calls, all_tokens * arguments.batches / batches.steps_per_epoch)
    tokens |= {"shuffle": all_tokens, "step": float((batches[0]["positions"] >= 0).sum())}
    return calls, tokens


def _print(records: list[dict]) -> None:
    rows = (
        (
            record["measured"],
            f"{record['rows']} x {record['row_length']}",
            f"{record['seconds']:.4f}",
            f"{record['tokens_per_second']:,.0f}",
            measure.shown_ratio(record["versus_step"]),
        )
        for record in records
    )
    measure.print_table(("measured", "batch", "seconds", "tokens/s", "vs step"), rows)


def draw(records: list[dict], path: pathlib.Path) -> None:
    """Draws the rates as bars, on a scale of powers of ten.

    Args:
      records: Measurements of this benchmark.
      path: File to write; its suffix names the format.

    Raises:
      UserError: matplotlib is not installed, or does not know the format.
    """
    figure = plot.make_figure(7, 2.8)
    axes = figure.subplots()
    names = [record["measured"] for record in records]
    rates = [record["tokens_per_second"] for record in records]
    colours = ["#c2416b" if name == "step" else "#3d5a80" for name in names]
    bars = axes.barh(names, rates, color=colours)
    ratios = [measure.shown_ratio(record["versus_step"]) for record in records]
    axes.bar_label(bars, ratios, padding=4)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel("tokens a second")
    axes.set_title(f"Input pipeline and training step, {records[0]['dataset']}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    plot.save(figure, path)
