"""Runs exported models, without the code of the model."""

import importlib.util
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
from jaxtyping import Array, Float

from blossom_jax import packed_rows
from blossom_jax.errors import UserError
from blossom_jax.export import LOADER, PROGRAM
from blossom_jax.trained_model import EXPORT, PARAMS, read_config


def load(directory: str | pathlib.Path) -> Any:
    """Opens an export through its own load.py, which is run: trust where the folder comes from.

    Args:
      directory: What `experiments.export` wrote.

    Returns:
      Its `Model`, with `scores` of item numbers and `recommend` for raw ids.

    Raises:
      UserError: There is no load.py.
    """
    path = pathlib.Path(directory) / LOADER
    if not path.is_file():
        raise UserError(f"{directory} is no export: it holds no {LOADER}")
    spec = importlib.util.spec_from_file_location("exported_model", path)
    assert spec and spec.loader  # the file's name ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(directory)


def last_scores(
    directory: str | pathlib.Path,
) -> tuple[Callable[[dict, dict], Float[Array, "u items"]], dict[str, np.ndarray]]:
    """Returns the program of an export as `evaluate.last_scores` returns a model, and its params.

    Args:
      directory: What `experiments.export` wrote.

    Raises:
      UserError: A file is missing or damaged.
    """
    directory = pathlib.Path(directory)
    try:
        program = jax.export.deserialize(bytearray((directory / PROGRAM).read_bytes()))
        with np.load(directory / PARAMS) as arrays:
            params = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{directory} is damaged: {error}") from error
    longest = read_config(directory)[EXPORT]["lengths"][-1]

    def score(params, batch):
        rows = batch["item_ids"], batch["positions"], batch["last"]
        length = min(batch["item_ids"].shape[1], longest)
        item_ids, positions, _ = packed_rows.one_a_row(*rows, length)
        return program.call(params, item_ids, positions)

    return score, params
