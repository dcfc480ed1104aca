"""Times training on packed rows against rows of one history each, padded to equal length.

A batch is packed as in training; the same histories are then laid out one to a row. Both ways hold
the same tokens that matter, so that ratios of time are ratios of tokens per second. Measured are
the encoder alone, forward and backward, and the whole training step: with the loss skipping
padding, and with it computing logits for padding too, as most code does.
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from blossom_jax.losses import make_loss
from blossom_jax.model import BlossomRec
from experiments import _cli, _setup
from experiments.benchmark import dataset, measure, training
from experiments.benchmark.training import Batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    measure.add_arguments(parser)
    add = parser.add_argument
    add("--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here")
    dataset.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures the encoder, then the whole step, and prints a table."""
    config = dataset.config(arguments)
    interactions, split = _setup.load_data(config)
    with _setup.make_stream(config, interactions, split) as stream:
        packed = next(stream)
    layouts = {"packed": packed, "padded": unpack(packed, config.model.max_length)}
    report = measure.Report("throughput", arguments.json, arguments.commit)
    make_model = _setup.model_maker(config, interactions.num_items)
    compare("encoder", layouts, encode(make_model), arguments.rounds, report)
    # With a target at padding too, the loss has no token to skip.
    padded = layouts["padded"]
    everywhere = padded | {"targets": np.maximum(padded["targets"], 1)}
    layouts["padded, none skipped"] = everywhere
    compare("whole step", layouts, step(make_model, config), arguments.rounds, report)
    _print(report.records)


def unpack(packed: Batch, row_length: int) -> Batch:
    """Gives each history of a packed batch a row of its own.

    Args:
      packed: Arrays [B, L]; `positions` are -1 at padding and 0 where a history begins.
      row_length: Tokens in each row that is returned.

    Returns:
      The same arrays as [histories, row_length], padded on the right.
    """
    real = packed["positions"] >= 0
    column = packed["positions"][real]
    row = np.cumsum(column == 0) - 1
    padded = {}
    for name, array in packed.items():
        empty = -1 if name == "positions" else 0
        padded[name] = np.full((row[-1] + 1, row_length), empty, array.dtype)
        padded[name][row, column] = array[real]
    return padded


def compare(
    measured: str,
    layouts: dict[str, Batch],
    prepare: Callable[[Batch], Callable],
    rounds: int,
    report: measure.Report,
) -> None:
    """Times the same work on batches of the same histories, and reports each.

    `seconds_ratio` is to the first layout.

    Args:
      measured: Name of the work.
      layouts: Batches by name.
      prepare: Turns a batch into a call that does the work.
      rounds: As in `measure.medians`.
      report: Where measurements are added.
    """
    calls = {name: prepare(batch) for name, batch in layouts.items()}
    seconds = measure.medians(calls, rounds)
    first = next(iter(seconds.values()))
    for name, batch in layouts.items():
        tokens = int((batch["positions"] >= 0).sum())
        rows, length = batch["positions"].shape
        report.add(
            measured=measured,
            layout=name,
            rows=rows,
            row_length=length,
            tokens=tokens,
            fill=tokens / (rows * length),
            seconds=seconds[name],
            tokens_per_second=tokens / seconds[name],
            seconds_ratio=seconds[name] / first,
        )


def encode(make_model: Callable[[], BlossomRec]) -> Callable[[Batch], Callable]:
    """Prepares the encoder alone, forward and backward, without dropout."""
    graphdef, params = nnx.split(make_model(), nnx.Param)

    @jax.jit
    def gradient(params, batch):
        def mean_square(params):
            hidden = nnx.merge(graphdef, params)(batch["item_ids"], batch["positions"])
            return jnp.mean(jnp.square(hidden), where=(batch["positions"] >= 0)[..., None])

        return jax.value_and_grad(mean_square)(params)

    return lambda batch: functools.partial(gradient, params, jax.device_put(batch))


def step(
    make_model: Callable[[], BlossomRec], config: ml_collections.ConfigDict
) -> Callable[[Batch], Callable]:
    """Prepares the whole training step on one device."""
    prepare = training.make_step(
        make_model,
        _setup.make_optimizer(config, num_steps=10_000),
        make_loss(_setup.loss_config(config), num_items=nnx.eval_shape(make_model).num_items),
        seed=config.seed,
        lazy_items=config.train.item_optimizer == "lazy",
    )
    return lambda batch: prepare(batch).call


def _print(records: list[dict]) -> None:
    header = ("layout", "measured", "rows", "fill", "seconds", "tokens/s", "time")
    rows = (
        (
            record["layout"],
            record["measured"],
            f"{record['rows']} x {record['row_length']}",
            f"{record['fill']:.2f}",
            f"{record['seconds']:.3f}",
            f"{record['tokens_per_second']:,.0f}",
            f"{record['seconds_ratio']:.2f}x",
        )
        for record in records
    )
    measure.print_table(header, rows)
