"""The data set that a benchmark trains on, and its config."""

import argparse
import importlib

import ml_collections

from blossom_jax.errors import UserError
from experiments.benchmark import measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a data set and how much of it makes a batch."""
    add = parser.add_argument
    add("--dataset", default="yelp", help="name of a config, and of its data; yelp by default")
    add(
        "--batch-rows",
        type=measure.positive,
        help="packed rows in a batch; the config's by default",
    )


def config(arguments: argparse.Namespace) -> ml_collections.ConfigDict:
    """Returns the config that was asked for.

    Raises:
      UserError: There is none of that name.
    """
    try:
        get_config = importlib.import_module(f"configs.{arguments.dataset}").get_config
    except (ModuleNotFoundError, AttributeError):
        raise UserError(f"--dataset={arguments.dataset}: no config has that name") from None
    found = get_config()
    if arguments.batch_rows:
        found.train.batch_rows = arguments.batch_rows
    return found
