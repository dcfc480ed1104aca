r"""Prepares an interaction log for training, and prints its size and the command to train on it.

python -m experiments.prepare_data --input log.csv --user-column user --item-column item \
        --time-column time --output data/mine --min-user-events 5 --min-item-events 5

python -m experiments.prepare_data --dataset ml_100k --card --advise

--card adds what the log is like: lengths, ties, repeats, popular targets. --advise adds a command
to train with that fits the lengths of its histories, with the measurements it rests on.
"""

import argparse
import importlib.util
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np

from blossom_jax.data import interactions, load_dataset, split
from blossom_jax.data.column_formats import Columns
from blossom_jax.data.filters import REPEATS
from blossom_jax.data.formats import FORMATS, guess_format, scan_table
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.load import NAMES
from blossom_jax.data.prepare import prepare
from blossom_jax.data.statistics import describe
from blossom_jax.errors import UserError
from experiments import _advice, _cli, _data_card


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    arguments = _parser().parse_args(argv)
    if bool(arguments.dataset) == bool(arguments.input):
        raise UserError("give either --input FILE with --output DIR, or --dataset NAME")
    if arguments.output:
        interactions.refuse_foreign(arguments.output)
    filters = {
        "min_user_events": arguments.min_user_events,
        "min_item_events": arguments.min_item_events,
        "repeats": arguments.repeats,
    }
    if arguments.dataset:
        log = load_dataset(arguments.dataset, **filters)
        if arguments.output:
            interactions.save(log, arguments.output)
    else:
        log = _prepare_input(arguments, filters)
    directory = arguments.output or log.directory
    _report(log, directory)
    command = _train_command(arguments, filters, directory)
    print(f"train on it with: {command}")
    if arguments.card or arguments.advise:
        statistics = describe(log, split.leave_one_out(log))
        if arguments.card:
            print("\n" + _data_card.card(statistics))
        if arguments.advise:
            print("\n" + _advice.advice(statistics, command))


def _parser() -> _cli.ArgumentParser:
    parser = _cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    named = ", ".join(name for name in NAMES if name != "custom")
    add("--input", metavar="FILE", help="a log to prepare")
    add("--dataset", metavar="NAME", help=f"or a data set known by name: {named}")
    add("--output", metavar="DIR", help="folder to write; with --dataset, the cache by default")
    add("--format", choices=FORMATS, help="of --input; its suffix tells where this is left out")
    add("--user-column", default="", metavar="NAME", help="column with the user's id")
    add("--item-column", default="", metavar="NAME", help="column with the item's id")
    add("--time-column", default="", metavar="NAME", help="column with the time; none = file order")
    add("--newest-first", action="store_true", help="rows run backwards in time")
    add("--min-user-events", type=int, default=1, metavar="N", help="drop users with fewer events")
    add("--min-item-events", type=int, default=1, metavar="N", help="drop items with fewer events")
    add("--repeats", choices=tuple(REPEATS), default="keep", help="what to do with repeated items")
    add("--card", action="store_true", help="print what the log is like")
    add("--advise", action="store_true", help="print a command to train with that fits the log")
    return parser


def _prepare_input(arguments: argparse.Namespace, filters: dict) -> Interactions:
    if not arguments.output:
        raise UserError("--input needs --output DIR")
    path = pathlib.Path(arguments.input)
    if not path.is_file():
        what = "that is a folder" if path.is_dir() else "there is no such file"
        raise UserError(f"--input={path}: {what}")
    columns = Columns(arguments.user_column, arguments.item_column, arguments.time_column)
    newest_first = arguments.newest_first
    return prepare(
        scan_table(path, arguments.format or guess_format(path), columns),
        arguments.output,
        name=path.stem,
        newest_first=newest_first,
        card={"source": path.name, "newest_first": newest_first},
        **filters,
    )


def _report(log: Interactions, directory: str) -> None:
    """Prints the log's size, and where it lies."""
    lengths = np.diff(log.offsets)
    order = "by time" if log.times is not None else "as in the file, since it has no times"
    print(f"{'order of events':>24}: {order}")
    test = split.leave_one_out(log).card["test"]
    for step in log.card["sizes"]:
        print("{filter:>24}: {users:,} users, {items:,} items, {events:,} events".format(**step))
    print(
        f"{'history length':>24}: mean {lengths.mean():.2f}, median {np.median(lengths):g}, "
        f"min {lengths.min()}, max {lengths.max():,}"
    )
    print(
        f"{'leave-one-out':>24}: {test['users']:,} users asked, "
        f"{test['repeated_target_share']:.1%} of targets repeated, "
        f"{test['target_unseen_in_training_share']:.1%} unseen in training"
    )
    print(f"{'prepared log':>24}: {directory}")


def _train_command(arguments: argparse.Namespace, filters: dict, directory: str) -> str:
    """Returns a command to train on the log: by the data set's own config if it reads this one."""
    name = arguments.dataset or "custom"
    flags = f"--config=configs/custom.py --config.data.path={shlex.quote(str(directory))}"
    own = f"configs.{name}"
    if arguments.dataset and not arguments.output and importlib.util.find_spec(own):
        config = importlib.import_module(own).get_config().data
        if filters == {key: config[key] for key in filters}:
            flags = f"--config=configs/{name}.py"
    run = name if arguments.dataset else pathlib.Path(directory).resolve().name
    return f"python -m experiments.train {flags} --workdir={shlex.quote(f'runs/{run}')}"


if __name__ == "__main__":
    _cli.run(main)
