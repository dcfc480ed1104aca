"""Opens what a training run, or an export of it, left in a folder."""

import contextlib
import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from blossom_jax import catalogue, sharding
from blossom_jax.catalogue import Catalogue
from blossom_jax.errors import UserError
from blossom_jax.model import ModelConfig, model_maker
from blossom_jax.train_step import abstract_params

CONFIG = "config.json"
PARAMS = "params.npz"
EXPORT = "export"  # section of an export's config that a run's does not have


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model, its parameters on the device, and the items that it knows.

    Attributes:
      directory: Where it was read.
      config: Every value of the config of its run, plain.
      catalogue: Its items.
      graphdef: The model without its parameters; `nnx.merge(graphdef, params)` is the model.
      params: The parameters.
      step: The training step after which they were saved.
      data: Content hash of the log that was trained on.
      mesh: The devices that they are on.
    """

    directory: pathlib.Path
    config: dict[str, Any]
    catalogue: Catalogue
    graphdef: nnx.GraphDef
    params: nnx.State
    step: int
    data: str
    mesh: jax.sharding.Mesh

    @property
    def model_config(self) -> ModelConfig:
        """Sizes and switches of the model."""
        return ModelConfig(**self.config["model"])


def load(
    directory: str | pathlib.Path,
    *,
    step: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainedModel:
    """Opens a trained model.

    Args:
      directory: The workdir of a run, or a folder that `experiments.export` wrote.
      step: Of the checkpoint to open; None takes the best of the run. An export has only one.
      mesh: Devices to put the parameters on; None takes the first one.

    Raises:
      UserError: No run or export, a damaged file, no such checkpoint, or parameters that do not
        fit the model which the config describes.
    """
    directory = pathlib.Path(directory)
    mesh = sharding.make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    config, items = read_config(directory), catalogue.load(directory)
    make_model = model_maker(ModelConfig(**config["model"]), items.num_items, config["seed"])
    graphdef, like = abstract_params(make_model, mesh)
    read = _read_exported if is_export(directory) else _read_checkpoint
    params, step, data = read(directory, like, step)
    return TrainedModel(directory, config, items, graphdef, params, step, data, mesh)


def is_export(directory: pathlib.Path) -> bool:
    """Tells whether a folder is an export, not a run."""
    return (directory / PARAMS).is_file()


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """Returns every value of the config that a run was started with.

    Raises:
      UserError: There is none, or it cannot be read.
    """
    path = directory / CONFIG
    try:
        values = json.loads(path.read_text())
        values["eval"]["ks"] = tuple(values["eval"]["ks"])  # JSON has no tuples
    except OSError as error:
        raise UserError(
            f"{directory} holds no run: {path} cannot be read: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return values


def _read_checkpoint(workdir, like, step):
    from blossom_jax.checkpoint import Checkpoints  # an export is opened without Orbax

    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        progress = checkpoints.latest_progress()
        best = progress["best_step"] if progress else 0
        if not progress or step is None and not best:
            known = ", ".join(f"--step={each}" for each in checkpoints.steps())
            raise UserError(
                f"{workdir} holds no checkpoint of a model that was evaluated: train on with the "
                f"same command{f', or name one: {known}' if known else ''}"
            )
        step = best if step is None else step
        if step not in checkpoints.steps():
            there = ", ".join(map(str, checkpoints.steps()))
            raise UserError(f"{workdir} holds no checkpoint of step {step}; it has: {there}")
        params = checkpoints.restore_params(step, like)
    if params is None:
        raise UserError(f"{workdir} holds no whole checkpoint of step {step}")
    return params, step, progress["data"]


def _read_exported(directory, like, step):
    path = directory / PARAMS
    section = read_config(directory)[EXPORT]
    exported_step = section["step"]
    if step not in (None, exported_step):
        raise UserError(f"{directory} holds the model after step {exported_step}, not {step}")
    try:
        with np.load(path) as arrays:
            return from_named(like, arrays), exported_step, section["data"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or of another model: {error}") from error


def named(params: nnx.State) -> dict[str, Any]:
    """Returns the parameters by name, as "layers/0/attention/qkv/kernel", in the tree's order."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def from_named(like: nnx.State, arrays: Mapping[str, Any]) -> nnx.State:
    """Puts parameters by name back into their tree, and on the devices.

    Args:
      like: The parameters as ShapeDtypeStructs with shardings.
      arrays: What `named` returned, as NumPy arrays.

    Raises:
      KeyError: One is missing.
      ValueError: One has another shape.
    """

    def put(path, leaf):
        array = arrays[_name(path)]
        if array.shape != leaf.shape:
            raise ValueError(f"{_name(path)} is {array.shape}, the model's is {leaf.shape}")
        return jax.device_put(array, leaf.sharding)

    return jax.tree_util.tree_map_with_path(put, like)


def _name(path) -> str:
    """Joins the keys of a path; what is not a key is the variable that wraps an array."""
    return "/".join(str(entry.key) for entry in path if hasattr(entry, "key"))
