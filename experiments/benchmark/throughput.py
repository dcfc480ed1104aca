"""Times training on packed rows against rows of one history each, padded to equal length.

A batch is packed as in training; the same histories are then laid out one to a row. Both ways hold
the same tokens that matter, so that ratios of time are ratios of tokens per second. Measured are
the encoder alone, forward and backward, and the whole training step: with the loss skipping
padding, and with it computing logits for padding too, as most code does.
"""

import argparse
import functools
import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from blossom_jax import sharding, train_step
from blossom_jax.config import ModelConfig
from blossom_jax.data import leave_one_out, load_dataset
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.data.windows import training_windows
from blossom_jax.errors import UserError
from blossom_jax.model import BlossomRec
from blossom_jax.optimizer import make_optimizer
from experiments.benchmark import measure

Batch = dict[str, np.ndarray]
OPTIMIZER = ("learning_rate", "warmup_steps", "schedule", "weight_decay", "b1", "b2", "clip_norm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    add("--dataset", default="yelp", help="name of a config, and of its data; yelp by default")
    add(
        "--batch-rows",
        type=measure.positive,
        help="packed rows in a batch; the config's by default",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures the encoder, then the whole step, and prints a table."""
    try:
        config = importlib.import_module(f"configs.{arguments.dataset}").get_config()
    except ModuleNotFoundError:
        raise UserError(f"--dataset={arguments.dataset}: no config has that name") from None
    report = measure.Report("throughput", arguments.json)
    packed, num_items = first_batch(config, arguments.batch_rows or config.train.batch_rows)
    sizes = ModelConfig(**config.model)

    def make_model():
        return BlossomRec(sizes, num_items, rngs=nnx.Rngs(config.seed))

    padded = unpack(packed, config.model.max_length)
    compare("encoder", encoders(make_model, packed, padded), arguments.rounds, report)
    compare("whole step", steps(make_model, packed, padded, config), arguments.rounds, report)
    _print(report.records)


def first_batch(config: ml_collections.ConfigDict, batch_rows: int) -> tuple[Batch, int]:
    """Returns the first packed batch of a training run, and the number of items."""
    data = config.data
    log = load_dataset(
        data.name,
        path=data.path,
        cache_dir=data.cache_dir,
        min_user_events=data.min_user_events,
        min_item_events=data.min_item_events,
        repeats=data.repeats,
    )
    windows = training_windows(log, leave_one_out(log), config.model.max_length)
    stream = TrainStream(
        log, windows, row_length=data.row_length, batch_rows=batch_rows, seed=config.seed
    )
    with stream:
        return next(stream), log.num_items


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
    calls: dict[str, tuple[Batch, Callable]],
    rounds: int,
    report: measure.Report,
) -> None:
    """Times calls over batches of the same histories, and reports each with its ratio to the first.

    Args:
      measured: What the calls do.
      calls: The batch and what is called, by layout.
      rounds: Timed calls of each.
      report: Where measurements are added.
    """
    seconds = measure.medians({name: call for name, (_, call) in calls.items()}, rounds)
    first = next(iter(seconds.values()))
    for name, (batch, _) in calls.items():
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


def encoders(make_model: Callable, packed: Batch, padded: Batch) -> dict:
    """Prepares the encoder, forward and backward and without dropout, on both layouts."""
    graphdef, params = nnx.split(make_model(), nnx.Param)

    @jax.jit
    def encode(params, batch):
        def mean_square(params):
            hidden = nnx.merge(graphdef, params)(batch["item_ids"], batch["positions"])
            return jnp.mean(jnp.square(hidden), where=(batch["positions"] >= 0)[..., None])

        return jax.value_and_grad(mean_square)(params)

    def prepare(batch):
        return batch, functools.partial(encode, params, jax.device_put(batch))

    return {"packed": prepare(packed), "padded": prepare(padded)}


def steps(
    make_model: Callable, packed: Batch, padded: Batch, config: ml_collections.ConfigDict
) -> dict:
    """Prepares the whole training step on both layouts, and on one that skips no token."""
    mesh = sharding.make_mesh(1, devices=jax.local_devices()[:1])
    optimizer = make_optimizer(
        total_steps=10_000, accumulate_steps=1, **{name: config.train[name] for name in OPTIMIZER}
    )
    graphdef, like = train_step.abstract_state(make_model, optimizer, mesh)
    step = train_step.make_train_step(
        graphdef,
        optimizer,
        mesh,
        like,
        num_items=nnx.eval_shape(make_model).num_items,
        loss_chunk=config.train.loss_chunk,
    )

    initial = train_step.init_state(make_model, optimizer, like)

    def prepare(batch):
        state = jax.tree.map(jnp.copy, initial)  # the step consumes it
        on_device = sharding.put_batch(batch, mesh)
        seed = jnp.uint32(config.seed)

        def call():
            nonlocal state
            state, metrics = step(state, on_device, seed)
            return metrics

        return batch, call

    # With a target at padding too, the loss has no token to skip.
    all_targets = padded | {"targets": np.maximum(padded["targets"], 1)}
    return {
        "packed": prepare(packed),
        "padded": prepare(padded),
        "padded, none skipped": prepare(all_targets),
    }


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
