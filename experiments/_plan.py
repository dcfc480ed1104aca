"""Finds out whether a run is possible, before anything is written or is on a device."""

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from blossom_jax import memory, popularity, sharding, together
from blossom_jax.data import Interactions, Split
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.errors import UserError
from blossom_jax.evaluate import Evaluator, encode_last
from blossom_jax.losses import make_loss
from blossom_jax.losses.negatives import cumulative_counts
from blossom_jax.train_step import (
    State,
    abstract_params,
    abstract_state,
    init_state,
    make_train_step,
)
from blossom_jax.trainer import Schedule
from experiments import _evaluation, _setup


class Plan(NamedTuple):
    """A run that was found to be possible, of which nothing is on the devices yet."""

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
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed must lie in [0, 2**32), got {config.seed}")
    loss_config = _setup.loss_config(config)
    _setup.check_objective(config)
    if config.model.grow_items and not config.train.init_from:
        raise UserError("model.grow_items=true needs train.init_from=DIR, the run that is to grow")
    interactions, split = _setup.load_data(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    sharding.check_batch(config.train.batch_rows, mesh)
    lazy_items = _setup.has_lazy_items(config, mesh)
    valid = _evaluation.Evaluation(config, interactions, split, "valid", mesh)
    test = _evaluation.Evaluation(config, interactions, split, "test", mesh, with_coverage=True)
    if config.eval.metric not in (measured := valid.popularity()):
        nearest = difflib.get_close_matches(config.eval.metric, measured, n=1, cutoff=0.0)
        raise UserError(f"eval.metric={config.eval.metric}: did you mean {nearest[0]}?")
    stream = _setup.make_stream(config, interactions, split)
    schedule = _setup.make_schedule(config, stream.steps_per_epoch)
    optimizer = _setup.make_optimizer(config, schedule.num_steps)
    make_model = _setup.model_maker(config, interactions.num_items)
    graphdef, _ = abstract_params(make_model, mesh)
    like = abstract_state(make_model, optimizer, mesh)
    loss = make_loss(loss_config, num_items=interactions.num_items, mesh=mesh)
    step = make_train_step(
        graphdef,
        optimizer,
        mesh,
        like,
        loss,
        mask_probability=config.train.mask_probability,
        lazy_items=lazy_items,
    )
    counts = popularity.item_counts(interactions, split) if loss_config.by_popularity else None
    seed = place_seed(config.seed, mesh)
    compiled, step_bytes = _compile(step, like, config, mesh, num_seeds, counts)
    evaluator = _evaluation.make_evaluator(
        config, encode_last(graphdef), interactions.num_items, mesh
    )
    others = num_seeds * memory.shard_bytes(like) - memory.shard_bytes(like["params"])
    for evaluation in (valid, test):
        evaluation.prepare(evaluator, like["params"], other_bytes=others)
    return Plan(
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
        seed,
        step_bytes,
        valid,
        test,
        evaluator,
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


def _compile(
    step: jax.stages.Wrapped, like: State, config, mesh, num, counts
) -> tuple[Callable, int]:
    """Compiles the step for the only shapes that there are; refuses one that does not fit.

    Returns:
      The step, and the bytes that it needs on one device.
    """
    shape = config.train.batch_rows, config.data.row_length
    devices = list(mesh.devices.flat)
    rows_per_device = config.train.batch_rows // mesh.size
    # The compiler finds out what is needed to the byte, but may fail at absurd sizes; so first
    # what is needed at least: the state, the gradients (of a lazy table hardly any), and each
    # layer's input for each token.
    hidden = rows_per_device * config.data.row_length * config.model.hidden_size
    lazy = config.train.item_optimizer == "lazy"
    at_least = (
        memory.shard_bytes(like)
        + (0 if lazy else memory.shard_bytes(like["params"]))
        + hidden * config.model.num_layers * jnp.dtype(config.model.dtype).itemsize
    )
    lower = "the sizes in config.model, train.batch_rows or data.row_length"
    memory.check_fits("a training step", num * at_least, devices, lower=lower)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
        for name in ("item_ids", "targets", "positions")
    }
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
    if num > 1:
        if mesh.size > 1:
            raise UserError(f"seeds are trained together on one device, not on {mesh.size}")
        step = together.vmap_step(step)
        like, batch, seed = together.stacked_like((like, batch, seed), num)
    cumulative = None if counts is None else cumulative_counts(counts)
    cumulative = sharding.put_whole(cumulative, sharding.replicated(mesh))
    compiled = step.lower(like, batch, seed, cumulative).compile()
    needed = memory.program_bytes(compiled)
    memory.check_fits("a training step", needed, devices, lower=lower)
    return lambda state, batch, seed: compiled(state, batch, seed, cumulative), needed
