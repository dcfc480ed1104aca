r"""Trains the rows of a table with several seeds, and says which differences are more than noise.

    python -m experiments.sweep --config=configs/yelp.py --sweep=configs/sweeps/quickstart.py \
        --seeds=5 --workdir=runs/yelp_sweep

configs/sweeps/quickstart.py tells the format of sweep files. The same command again resumes what
was stopped, and prints the table again when all is done. More seeds, or more rows, may be asked for
later. Every row is trained in a process of its own; `--jobs=2` trains two rows at a time, and
`--gpus=0,1` likewise, each on a GPU of its own. With a grid, first every trial is such a process.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Sequence

from blossom_jax.errors import UserError
from experiments import _cli, _compile_cache, _stop
from experiments.sweep import folder, processes, runs
from experiments.sweep.definition import Sweep, load_sweep, with_values


def main(argv: Sequence[str]) -> int:
    """Trains what is missing, then compares."""
    arguments = _parse(argv)
    _compile_cache.enable()
    sweep, config = load_sweep(arguments.sweep), arguments.config
    _check(arguments, sweep)
    workdir = pathlib.Path(arguments.workdir)
    seeds = [config.seed + n for n in range(arguments.seeds)]
    if arguments.only is not None:
        return _train_one(arguments, sweep, seeds)
    for changes in sweep.rows.values():
        for point in sweep.points():  # a mistake is refused before anything is trained
            with_values(config, changes | point)
    folder.write_definition(workdir, sweep, seeds, config.eval.metric)
    codes = _train_all(arguments, sweep, [sys.executable, "-m", "experiments.sweep", *argv])
    print(folder.summarize(workdir))
    return next((code for code in codes.values() if code), 0)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _cli.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    parser.add_argument("--sweep", required=True, metavar="FILE.py", help="rows and grid")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs of each row, 3 by default"
    )
    parser.add_argument(
        "--workdir", required=True, type=_cli.folder, metavar="DIR", help="folder of the sweep"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="rows, or trials of a grid, at a time"
    )
    parser.add_argument(
        "--gpus",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="N,..",
        help="train each row or trial on one of these GPUs; with --jobs=1 as many at a time",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="train the seeds of a row as one program: one device, and memory for all of them",
    )
    parser.add_argument(
        "--only",
        metavar="ROW",
        help="train this row alone, in this process, and compare nothing",
    )
    parser.add_argument(
        "--trial", type=int, metavar="N", help="with --only: train the N-th point of the grid alone"
    )
    return _cli.parse_with_config(parser, argv)


def _check(arguments: argparse.Namespace, sweep: Sweep) -> None:
    """Refuses numbers that make no sense, and what belongs to another flag."""
    for name, least in (("seeds", 1), ("jobs", 1)):
        if (value := getattr(arguments, name)) < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    if sweep.num_trials and arguments.seeds < sweep.tuning_seeds:
        raise UserError(
            f"--seeds must be at least {sweep.tuning_seeds}, with which {arguments.sweep} tunes; "
            f"got {arguments.seeds}"
        )
    if arguments.trial is None:
        return
    if arguments.only is None:
        raise UserError(f"--trial={arguments.trial} needs --only=ROW")
    if not 0 <= arguments.trial < sweep.num_trials:
        raise UserError(
            f"--trial={arguments.trial}: the grid has {sweep.num_trials} points, from 0 on"
        )


def _train_all(
    arguments: argparse.Namespace, sweep: Sweep, command: Sequence[str]
) -> dict[str, int]:
    """Trains every row; where several processes may run at a time, its trials apart before it."""
    jobs = arguments.jobs if arguments.jobs > 1 else max(1, len(arguments.gpus))
    commands, after = {}, {}
    if jobs > 1:
        for row, trial in itertools.product(sweep.rows, range(sweep.num_trials)):
            name = f"{row}, trial {trial}"
            commands[name] = [*command, f"--only={row}", f"--trial={trial}"]
            after.setdefault(row, []).append(name)
    commands |= {row: [*command, f"--only={row}"] for row in sweep.rows}
    return processes.run_all(commands, jobs=jobs, gpus=arguments.gpus, after=after)


def _train_one(arguments: argparse.Namespace, sweep: Sweep, seeds: Sequence[int]) -> int:
    if arguments.only not in sweep.rows:
        raise UserError(f"--only={arguments.only}: the rows are {', '.join(sweep.rows)}")
    workdir, together = pathlib.Path(arguments.workdir), arguments.together
    config, row, trial = arguments.config, arguments.only, arguments.trial
    rest = config, seeds, workdir
    with _stop.exits_at_signals(code=processes.STOPPED):
        if trial is None:
            finished = runs.train_row(sweep, row, *rest, together=together)
        else:
            finished = runs.train_trial(sweep, row, trial, *rest, together=together)
    return 0 if finished else processes.STOPPED


if __name__ == "__main__":
    _cli.run(main)
