"""Times a full-ranking evaluation against an epoch of training, on one data set.

Both are compiled, by the data set's config, and take turns: a few training steps, from which the
epoch follows, then a whole validation under all protocols. The parameters are those of so few
steps, which changes no time. CPU time is that of the process, which other work on the machine
inflates, but for both alike. The aim is an evaluation of at most a tenth of an epoch.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from blossom_jax import sharding
from experiments import _cli, _plan
from experiments.benchmark import dataset, measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    measure.add_arguments(parser)
    add("--json", metavar="FILE", type=_cli.writable, help="also write the line of JSON here")
    dataset.add_arguments(parser)
    add("--steps", type=measure.positive, default=8, help="of training in a turn, 8 by default")


def run(arguments: argparse.Namespace) -> None:
    """Measures, and prints a table."""
    config = dataset.config(arguments)
    config.train.num_steps = 10_000  # longer than any schedule's warm-up, on the smallest log too
    plan = _plan.make_plan(config)
    with plan.stream:
        train, evaluate = _calls(plan, arguments.steps)
        turns = [
            (*measure.both_seconds(train), *measure.both_seconds(evaluate))
            for _ in range(1 + arguments.rounds)
        ]
    # The first turn warms up.
    step, step_cpu, seconds, cpu = np.median(turns[1:], axis=0).tolist()
    epoch = plan.stream.steps_per_epoch / arguments.steps
    users, tokens, padding = _count(plan)
    report = measure.Report("evaluation", arguments.json, arguments.commit)
    record = report.add(
        dataset=arguments.dataset,
        users=users,
        tokens=tokens,
        padding=padding,
        steps=arguments.steps,
        steps_per_epoch=plan.stream.steps_per_epoch,
        epoch_seconds=epoch * step,
        epoch_cpu_seconds=epoch * step_cpu,
        evaluation_seconds=seconds,
        evaluation_cpu_seconds=cpu,
        cpu_ms_per_user=1e3 * cpu / users,
        share_of_epoch=seconds / (epoch * step),
        cpu_share_of_epoch=cpu / (epoch * step_cpu),
    )
    _print(record)


def _calls(plan: _plan.Plan, num_steps: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Returns what trains some steps on, always on the same batches, and what validates."""
    batches = [sharding.put_batch(next(plan.stream), plan.mesh) for _ in range(num_steps)]
    state = plan.init()

    def train():
        nonlocal state
        for batch in batches:
            state, _ = plan.step(state, batch, plan.seed)
        return state

    return train, lambda: plan.valid.rank(plan.evaluator, state["params"])


def _count(plan: _plan.Plan) -> tuple[int, int, int]:
    """Counts users, the tokens that a validation encodes, and those of them that are padding."""
    users = tokens = padding = 0
    for batch in plan.valid.batches():
        users += int((batch["history"] >= 0).sum())
        tokens += batch["positions"].size
        padding += int((batch["positions"] < 0).sum())
    return users, tokens, padding


def _print(record: dict) -> None:
    header = ["data set", "users", "padding", "CPU ms a user", "CPU s", "epoch", "share"]
    header += ["s", "epoch", "share"]
    row = (
        record["dataset"],
        f"{record['users']:,}",
        f"{record['padding'] / record['tokens']:.1%}",
        f"{record['cpu_ms_per_user']:.3f}",
        f"{record['evaluation_cpu_seconds']:.2f}",
        f"{record['epoch_cpu_seconds']:.1f}",
        f"{record['cpu_share_of_epoch']:.1%}",
        f"{record['evaluation_seconds']:.2f}",
        f"{record['epoch_seconds']:.1f}",
        f"{record['share_of_epoch']:.1%}",
    )
    measure.print_table(header, [row])
