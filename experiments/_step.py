"""Compiles the training step for the only shapes that there are, if it fits into memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from blossom_jax import memory, sharding, together
from blossom_jax.errors import UserError
from blossom_jax.losses.negatives import cumulative_counts
from blossom_jax.train_step import State

_LOWER = "the sizes in config.model, train.batch_rows or data.row_length"
_BY_OPS = ("blossom", "ltis", "stis", "dense_gated")  # attentions made of pallas_kernels' ops


def compile_step(
    step: jax.stages.Wrapped,
    like: State,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    counts: np.ndarray | None,
    *,
    num_seeds: int,
) -> tuple[Callable[[State, dict, jax.Array], tuple[State, dict]], int]:
    """Compiles a training step.

    Args:
      step: From `make_train_step`.
      like: The state of one seed, described.
      config: Of the run.
      mesh: Devices of the run.
      counts: int64[num_items + 1], how often items were trained on; None for a loss that does not
        ask.
      num_seeds: Seeds that are trained as one program, see `blossom_jax.together`.

    Returns:
      `(state, batch, seed) -> (state, metrics)`, and the bytes that it needs on one device.

    Raises:
      UserError: It needs more memory than there is, or several seeds were to share devices.
    """
    devices = [*mesh.devices.flat]
    # The compiler finds out what is needed to the byte, but may fail at absurd sizes.
    memory.check_fits(
        "a training step", num_seeds * _least_bytes(like, config, mesh), devices, lower=_LOWER
    )
    _check_offsets(config)
    inputs = like, *_batch_and_seed(config, mesh)
    if num_seeds > 1:
        if mesh.size > 1:
            raise UserError(f"seeds are trained together on one device, not on {mesh.size}")
        step, inputs = together.vmap_step(step), together.stacked_like(inputs, num_seeds)
    cumulative = None if counts is None else cumulative_counts(counts)
    cumulative = sharding.put_whole(cumulative, sharding.replicated(mesh))
    compiled = step.lower(*inputs, cumulative).compile()
    needed = memory.program_bytes(compiled)
    memory.check_fits("a training step", needed, devices, lower=_LOWER)
    return lambda state, batch, seed: compiled(state, batch, seed, cumulative), needed


def _least_bytes(like: State, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """Counts the state, the gradients (of a lazy table hardly any), and each layer's input."""
    gradients = 0 if config.train.item_optimizer == "lazy" else memory.shard_bytes(like["params"])
    tokens = config.train.batch_rows // mesh.size * config.data.row_length
    layer = tokens * config.model.hidden_size * jnp.dtype(config.model.dtype).itemsize
    return memory.shard_bytes(like) + gradients + config.model.num_layers * layer


def _check_offsets(config: ml_collections.ConfigDict) -> None:
    """Refuses what the attention ops would, in the words of the config."""
    size = config.train.batch_rows * config.data.row_length * config.model.hidden_size
    if size >= 2**31 and config.model.attention in _BY_OPS:
        raise UserError(
            f"a training step needs {size:,} elements for each activation: train.batch_rows x "
            "data.row_length x model.hidden_size must be below 2**31, since offsets are int32: "
            f"lower {_LOWER}"
        )


def _batch_and_seed(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[dict, jax.ShapeDtypeStruct]:
    """Describes a batch and the seed."""
    shape, place = (config.train.batch_rows, config.data.row_length), sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)
        for name in ("item_ids", "targets", "positions")
    }
    return batch, jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
