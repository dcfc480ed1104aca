"""A run on a tiny log, saved as if it had been trained: its parameters are the initial ones."""

import contextlib
import dataclasses
import pathlib

import numpy as np
import polars as pl

from blossom_jax import sharding
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.data import from_table, interactions
from blossom_jax.schedule import Progress
from blossom_jax.train_step import abstract_state, init_state
from experiments import _cli, _setup, _workdir

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = {
    "data.row_length": 32,
    "model.hidden_size": 16,
    "model.inner_size": 16,
    "model.num_layers": 1,
    "model.compress_block_size": 4,
    "model.compress_stride": 2,
    "model.selection_block_size": 2,
    "model.num_selected_blocks": 2,
    "model.max_length": 16,
    "train.batch_rows": 8,
    "train.num_steps": 4,
    "train.warmup_steps": 0,
    "eval.every_steps": 4,
    "eval.batch_users": 8,
    "eval.num_negatives": 10,
}


def make_log(
    folder: pathlib.Path, *, num_items: int = 30, first: int = 0, num_users: int = 30
) -> pathlib.Path:
    """Writes a log of users who walk along a ring of items, the first for one event, and so on."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{first + item}")
        for user in range(num_users)
        for item in (rng.integers(num_items) + np.arange(1 + user)) % num_items
    ]
    table = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    interactions.save(from_table(table, name="tiny"), folder)
    return folder


def flags(log: pathlib.Path, workdir: pathlib.Path, **changes) -> list[str]:
    """Returns the flags of `experiments.train`."""
    values = SIZES | {"data.path": log} | {key.replace("__", "."): v for key, v in changes.items()}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return [f"--config={ROOT}/configs/custom.py", f"--workdir={workdir}", *overrides]


def make_run(log: pathlib.Path, workdir: pathlib.Path, *, step: int = 4, **changes):
    """Writes config.json, items.json and one checkpoint; returns its state."""
    parser = _cli.ArgumentParser()
    parser.add_argument("--workdir")
    config = _cli.parse_with_config(parser, flags(log, workdir, **changes)).config
    events, split = _setup.load_data(config)
    make_model = _setup.model_maker(config, events.num_items)
    optimizer = _setup.make_optimizer(config, 4)
    like = abstract_state(make_model, optimizer, sharding.make_mesh())
    state = init_state(make_model, optimizer, like)
    _workdir.write_config(workdir, config)
    _workdir.write_catalogue(workdir, events, split)
    progress = Progress(events.content_hash, {}, step=step, best_step=step)
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        checkpoints.save(step, state, dataclasses.asdict(progress), best_step=step)
    return state
