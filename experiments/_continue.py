"""Starts a run from the last checkpoint of another one: new events, and perhaps new items."""

import contextlib
import pathlib

import jax
import ml_collections
import numpy as np

from blossom_jax import catalogue
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.continued_training import continued_state, match_items
from blossom_jax.errors import UserError
from blossom_jax.train_step import State, abstract_state
from experiments import _setup, _workdir
from experiments._plan import Plan

_ANY_STEPS = 10**9  # what the optimizer's state looks like does not depend on the schedule's length


def from_run(plan: Plan, initial: State) -> State:
    """Carries the state of the run `train.init_from` over into the initial state of a new run.

    Args:
      plan: Of the new run.
      initial: Its initial state; donated.

    Raises:
      UserError: No run there, no whole checkpoint, another model, items that the old model does not
        know while `model.grow_items` is false, or no item that it knows.
    """
    folder = pathlib.Path(plan.config.train.init_from)
    config, items = _workdir.read_config(folder), catalogue.load(folder)
    old_number = match_items(items, plan.interactions.item_ids.tolist())
    new = int(np.sum(old_number < 0))
    if new and not plan.config.model.grow_items:
        before, after = items.num_items, plan.interactions.num_items
        change = "grown" if after > before else "changed"
        raise UserError(
            f"the catalogue has {change} from {before:,} to {after:,} items since the checkpoint "
            f"of {folder}, {new:,} of them new; "
            "--config.model.grow_items=true keeps the rows of the known ones and adds new rows"
        )
    kept = plan.interactions.num_items - new
    if not kept:
        here, there = str(plan.interactions.item_ids[0]), items.item_ids[0]
        raise UserError(
            f"none of the {new:,} items is in the catalogue of {folder}: are their ids written as "
            f"there? The first is {here!r} here, {there!r} there"
        )
    old, step = _restore(folder, config, items.num_items, plan)
    if jax.process_index() == 0:
        print(
            f"starting from step {step:,} of {folder}: {kept:,} items keep their rows, {new:,} are "
            f"new, {items.num_items - kept:,} are no longer in the log",
            flush=True,
        )
    return continued_state(initial, old, old_number)


def _restore(
    folder: pathlib.Path, config: ml_collections.ConfigDict, num_items: int, plan: Plan
) -> tuple[State, int]:
    """Returns the state of the last whole checkpoint of a run, and its step."""
    make_model = _setup.model_maker(config, num_items)
    like = abstract_state(make_model, _setup.make_optimizer(config, _ANY_STEPS), plan.mesh)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore_latest(like)
    if restored is None:
        raise UserError(f"train.init_from={folder} holds no whole checkpoint")
    return restored[0], restored[1]["step"]
