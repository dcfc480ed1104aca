"""How arrays are laid out over devices: the only file that names mesh axes.

The mesh has two axes. Batches are split by rows over "data". The rows of the item table, and of
everything shaped and named like it in the optimizer state, are split over "model"; all other
parameters are on every device.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from blossom_jax.errors import UserError

DATA, MODEL = "data", "model"
ROWS = P(DATA)  # of a batch: one row a sequence, or one a token
TABLE_ROWS = P(MODEL)
EVERYWHERE = P()


def make_mesh(
    data: int = -1, model: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices in a mesh of `data` x `model`.

    Args:
      data: Parts that a batch is split into; -1 = as many as there are devices for.
      model: Parts that the item table is split into; -1 likewise.
      devices: All of them by default.

    Raises:
      UserError: If the axes do not use up the devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = len(devices) // max(-data * model, 1)  # what is left for an axis given as -1
    shape = tuple(rest if size == -1 else size for size in (data, model))
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise UserError(
            f"a mesh of data={data} x model={model} does not fit {len(devices)} device(s); "
            "their product must be that number, and one of them may be -1 for all the rest"
        )
    return jax.make_mesh(shape, (DATA, MODEL), (AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis of an array over "data"."""
    return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """Keeps an array on every device."""
    return NamedSharding(mesh, EVERYWHERE)


def is_item_table(path: tuple) -> bool:
    """Tells whether a leaf at this path of a pytree is the item table or a moment of it."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    return ("item_embedding", "embedding") in zip(names, names[1:], strict=False)


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """Says where each leaf of parameters or of optimizer state lives.

    Args:
      mesh: From `make_mesh`.
      params: A pytree with named paths: nnx.State, dicts, or an Optax state holding such trees.

    Returns:
      The same tree with a NamedSharding at each leaf.

    Raises:
      UserError: If the rows of the item table do not split evenly.
    """

    def shard(path, leaf):
        if not is_item_table(path):
            return replicated(mesh)
        if leaf.shape[0] % mesh.shape[MODEL]:
            raise UserError(
                f"mesh.model={mesh.shape[MODEL]} does not divide the {leaf.shape[0]} rows "
                "of the item table"
            )
        return NamedSharding(mesh, TABLE_ROWS)

    return jax.tree_util.tree_map_with_path(shard, params)


def check_batch(batch_rows: int, mesh: Mesh) -> None:
    """Raises UserError unless a batch splits evenly over the devices."""
    if batch_rows % mesh.shape[DATA]:
        raise UserError(
            f"batch not divisible by devices: {batch_rows} rows over mesh.data={mesh.shape[DATA]}"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves this host's rows of a batch to its devices.

    Args:
      batch: Arrays whose first axis is this host's part of the rows.
      mesh: From `make_mesh`.

    Returns:
      Global arrays, split over "data".
    """
    place = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(place, rows) for name, rows in batch.items()
    }
