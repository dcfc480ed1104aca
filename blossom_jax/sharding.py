"""How arrays are laid out over devices: the only file that names mesh axes.

The mesh has two axes. The rows of the item table, and of everything shaped and named like it in the
optimizer state, are split over "model"; all other parameters are on every device. Batches are split
by rows over all devices, so that none repeats another's work; only where tokens meet the table do
the devices of one "data" index share their tokens.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from blossom_jax.errors import UserError

DATA, MODEL = "data", "model"
BATCH_ROWS = P((DATA, MODEL))  # of a batch: one row a sequence
ROWS = P(DATA)  # of tokens that meet the table: each device of "model" has its own items for them
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


def platform_of(mesh: Mesh | None) -> str:
    """Returns "cpu", "gpu" or "tpu": what computes on a mesh; for None on the default device."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def traced_on(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Tells what is traced inside that its arrays lie on a mesh, batches split by rows.

    Args:
      mesh: From `make_mesh`. One device needs no telling: nothing changes.
    """
    if mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def by_rows(function: Callable) -> Callable:
    """Has each device apply a function to its own rows, where arrays lie on several.

    XLA splits its own operations by itself, but would gather all rows for a Triton kernel.

    Args:
      function: Of arrays that all have the batch's rows as first axis, as have its outputs; what
        it does to a row depends on that row alone.

    Returns:
      The function itself, unless it is traced inside `traced_on` several devices.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(
        function,
        in_specs=BATCH_ROWS,
        out_specs=BATCH_ROWS,
        check_vma=False,  # it wants every kernel to declare what its outputs vary over
    )


def look_up(table: Float[Array, "R M"], item_ids: Int[Array, "B L"]) -> Float[Array, "B L M"]:
    """Reads rows of the item table, of which each device may have a part.

    No device ever has the whole table: each reads what it has for the tokens of its "data" index,
    and a sum brings every token's row to where the token is. Gradients take the same way back.

    Args:
      table: The item table.
      item_ids: Rows to read.
    """
    if jax.sharding.get_abstract_mesh().shape.get(MODEL, 1) == 1:
        return jnp.take(table, item_ids, axis=0)
    return jax.shard_map(_look_up_own, in_specs=(TABLE_ROWS, ROWS), out_specs=BATCH_ROWS)(
        table, item_ids
    )


def _look_up_own(table, item_ids):
    row = item_ids - table.shape[0] * jax.lax.axis_index(MODEL)
    is_own = (row >= 0) & (row < table.shape[0])
    found = jnp.where(is_own[..., None], table.at[row].get(mode="clip"), 0)
    return jax.lax.psum_scatter(found, MODEL, scatter_dimension=0, tiled=True)


def laid_out(x: Array, rows: P) -> Array:
    """Has XLA lay an array out over devices in one way, where it would choose another.

    Args:
      x: Any array.
      rows: `ROWS`, as what is to be multiplied with the table, or `BATCH_ROWS`.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, rows)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis of an array over all devices."""
    return NamedSharding(mesh, BATCH_ROWS)


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
    if batch_rows % mesh.size:
        raise UserError(
            f"batch not divisible by devices: train.batch_rows={batch_rows} over {mesh.size} "
            "devices; choose a multiple of their number"
        )


def put_whole(arrays: Any, where: NamedSharding) -> Any:
    """Moves arrays that every host has in full to the devices, to each its part.

    `jax.device_put` would have the hosts compare every array first.

    Args:
      arrays: A pytree.
      where: From `batch_sharding` or `replicated`.
    """
    if where.is_fully_addressable:
        return jax.device_put(arrays, where)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), where, np.asarray(x).__getitem__),
        arrays,
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves this host's rows of a batch to its devices.

    Args:
      batch: Arrays whose first axis is this host's part of the rows.
      mesh: From `make_mesh`.

    Returns:
      Global arrays, split over all devices.
    """
    place = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(place, rows) for name, rows in batch.items()
    }
