"""Finds out whether a run is possible, before anything is written or is on a device."""

import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from flax import nnx

from blossom_jax import memory, popularity, sharding
from blossom_jax.data import Interactions, Split
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.errors import UserError
from blossom_jax.evaluate import Evaluator, encode_last
from blossom_jax.losses import make_loss
from blossom_jax.schedule import Schedule
from blossom_jax.train_step import (
    State,
    abstract_params,
    abstract_state,
    init_state,
    make_train_step,
)
from experiments import _commit, _evaluation, _setup
from experiments._step import compile_step


class Plan(NamedTuple):
    """A run that was found to be possible, of which nothing is on the devices yet."""

    commit: str  # of the code, before training
    config: ml_collections.ConfigDict
    interactions: Interactions
    split: Split
    mesh: jax.sharding.Mesh
    stream: TrainStream
    schedule: Schedule
    graphdef: nnx.GraphDef
    like: State  # described
    init: Callable[[], State]
    step: Callable[[State, dict, jax.Array], tuple[State, dict]]
    seed: jax.Array  # on the devices; the last argument of `step`
    step_bytes: int  # that the step holds at once on one device
    valid: _evaluation.Evaluation
    test: _evaluation.Evaluation
    evaluator: Evaluator


def make_plan(config: ml_collections.ConfigDict, num_seeds: int = 1) -> Plan:
    """Reads the data and compiles the programs; writes nothing.

    Args:
      config: As `configs/common.py` describes it.
      num_seeds: Seeds that are trained as one program. With several, the step takes their states,
        batches and seeds stacked on a first axis, see `blossom_jax.together`.

    Raises:
      UserError: Whatever makes the run impossible.
    """
    commit = _commit.git_commit()
    _check(config)
    interactions, split = _setup.load_data(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    sharding.check_batch(config.train.batch_rows, mesh)
    _setup.has_lazy_items(config, mesh)  # refuses before anything is drawn
    valid, test = _make_evaluations(config, interactions, split, mesh)
    stream = _setup.make_stream(config, interactions, split)
    schedule = _setup.make_schedule(config, stream.steps_per_epoch)
    optimizer = _setup.make_optimizer(config, schedule.num_steps)
    make_model = _setup.model_maker(config, interactions.num_items)
    graphdef, _ = abstract_params(make_model, mesh)
    like = abstract_state(make_model, optimizer, mesh)
    step = _make_step(config, graphdef, optimizer, like, mesh, interactions.num_items)
    by_popularity = _setup.loss_config(config).by_popularity
    counts = popularity.item_counts(interactions, split) if by_popularity else None
    if jax.process_index() == 0:
        print("compiling: a minute or two the first time", file=sys.stderr, flush=True)
    compiled, step_bytes = compile_step(step, like, config, mesh, counts, num_seeds=num_seeds)
    encode, num_items = encode_last(graphdef), interactions.num_items
    evaluator = _evaluation.make_evaluator(config, encode, num_items, mesh)
    others = num_seeds * memory.shard_bytes(like) - memory.shard_bytes(like["params"])
    for evaluation in (valid, test):
        evaluation.prepare(evaluator, like["params"], other_bytes=others)
    return Plan(
        commit,
        config,
        interactions,
        split,
        mesh,
        stream,
        schedule,
        graphdef,
        like,
        lambda: init_state(make_model, optimizer, like),
        compiled,
        place_seed(config.seed, mesh),
        step_bytes,
        valid,
        test,
        evaluator,
    )


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses what can be told from the config alone."""
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed must lie in [0, 2**32), got {config.seed}")
    _setup.loss_config(config)
    _setup.check_objective(config)
    if config.model.grow_items and not config.train.init_from:
        raise UserError("model.grow_items=true needs train.init_from=DIR, the run that is to grow")


def _make_evaluations(
    config: ml_collections.ConfigDict,
    interactions: Interactions,
    split: Split,
    mesh: jax.sharding.Mesh,
) -> tuple[_evaluation.Evaluation, _evaluation.Evaluation]:
    """Returns what measures in validation and in test."""
    valid = _evaluation.Evaluation(config, interactions, split, "valid", mesh)
    test = _evaluation.Evaluation(config, interactions, split, "test", mesh, with_coverage=True)
    if config.eval.metric not in (measured := valid.popularity):
        nearest = difflib.get_close_matches(config.eval.metric, measured, n=1, cutoff=0.0)
        raise UserError(
            f"eval.metric={config.eval.metric} is not measured with "
            f"eval.ks={tuple(config.eval.ks)}: did you mean {nearest[0]}?"
        )
    return valid, test


def _make_step(
    config: ml_collections.ConfigDict,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    like: State,
    mesh: jax.sharding.Mesh,
    num_items: int,
) -> jax.stages.Wrapped:
    return make_train_step(
        graphdef,
        optimizer,
        mesh,
        like,
        make_loss(_setup.loss_config(config), num_items=num_items, mesh=mesh),
        mask_probability=config.train.mask_probability,
        lazy_items=_setup.has_lazy_items(config, mesh),
    )


def with_seed(plan: Plan, seed: int) -> Plan:
    """Returns the plan of the same run from another seed, with the same compiled programs."""
    config = plan.config.copy_and_resolve_references()
    with config.unlocked():
        config.seed = seed
    make_model = _setup.model_maker(config, plan.interactions.num_items)
    optimizer = _setup.make_optimizer(config, plan.schedule.num_steps)
    return plan._replace(
        config=config,
        stream=_setup.make_stream(config, plan.interactions, plan.split),
        init=lambda: init_state(make_model, optimizer, plan.like),
        seed=place_seed(seed, plan.mesh),
    )


def place_seed(seed: int | Sequence[int], mesh: jax.sharding.Mesh) -> jax.Array:
    """Puts a seed, or several, on all devices."""
    return sharding.put_whole(np.asarray(seed, np.uint32), sharding.replicated(mesh))
