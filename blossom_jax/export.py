"""Exports a trained model as a program that needs no code of ours."""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util

from blossom_jax import catalogue, trained_model
from blossom_jax.errors import UserError
from blossom_jax.model import model_maker
from blossom_jax.trained_model import TrainedModel

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "program.stablehlo"
LOADER = "load.py"
_SHORTEST = 16


def write(model: TrainedModel, directory: str | pathlib.Path, card: str) -> None:
    """Writes the folder of an export, whole or not at all.

    Args:
      model: The model.
      directory: Is created, with
        params/: the parameters alone, by Orbax.
        params.npz: the same by name, for NumPy.
        items.json: raw ids and how often each was trained on.
        config.json: the config of the run, and the section "export".
        README.md: `card`.
        load.py: reads and runs all this, with jax, numpy and flatbuffers alone.
        program.stablehlo: see `program`.
      card: What the model is, in Markdown.

    Raises:
      UserError: There is something at `directory` already.
    """
    directory = pathlib.Path(directory).absolute()
    refuse_existing(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp's own mode shuts out other users
        _write(model, temporary, card)
        refuse_existing(directory)
        os.rename(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(directory: str | pathlib.Path) -> None:
    """Raises UserError if there is something where an export is to be written."""
    if pathlib.Path(directory).exists():
        raise UserError(f"{directory} is there already: name a folder that is not, or delete it")


def _write(model: TrainedModel, folder: pathlib.Path, card: str) -> None:
    arrays: dict[str, Any] = {
        name: np.asarray(array) for name, array in trained_model.named(model.params).items()
    }
    np.savez(folder / trained_model.PARAMS, **arrays)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", traverse_util.unflatten_dict(arrays, sep="/"))
    catalogue.save(model.catalogue, folder)
    section = {
        "step": model.step,
        "data": model.data,
        "num_items": model.catalogue.num_items,
        "lengths": lengths(model.model_config.history_length),
        "platforms": PLATFORMS,
    }
    config = model.config | {trained_model.EXPORT: section}
    (folder / trained_model.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / "README.md").write_text(card, encoding="utf-8")
    shutil.copyfile(pathlib.Path(__file__).with_name("export_loader.py"), folder / LOADER)
    (folder / PROGRAM).write_bytes(program(model).serialize())


def lengths(max_length: int) -> list[int]:
    """Returns the lengths that a history is padded to: 16, 64, 256, ... and `max_length`."""
    found = []
    while (length := _SHORTEST * 4 ** len(found)) < max_length:
        found.append(length)
    return [*found, max_length]


def program(model: TrainedModel) -> jax.export.Exported:
    """Exports `(params, item_ids [b, l], positions [b, l]) -> scores [b, num_items + 1]`.

    The scores are f32, of the item after the one at the highest position of each row, which holds
    one history. Parameters are {name: array}, and arguments. Both b and l are symbolic, l at most
    `max_length`. The tiles of the attention need numbers, though: so each row is mapped alone, and
    l is padded to the next of a few lengths, for each of which the program has a branch. What
    compiles it knows l, and keeps one of them.

    The attention runs on the XLA path, which any platform can.
    """
    config = dataclasses.replace(model.model_config, implementation="xla")
    graphdef = nnx.graphdef(nnx.eval_shape(model_maker(config, model.catalogue.num_items, 0)))
    tree = jax.tree.structure(model.params)
    names = list(trained_model.named(model.params))
    sizes = lengths(config.history_length)

    def score_row(params, item_ids, positions):  # [l] each
        merged = nnx.merge(graphdef, jax.tree.unflatten(tree, [params[name] for name in names]))
        last = jnp.argmax(positions, keepdims=True)
        return merged.scores(merged.encode_next(item_ids[None], positions[None], last)[0])

    def branch(length):
        def score_rows(params, item_ids, positions):
            one_by_one = jax.vmap(score_row, in_axes=(None, 0, 0))
            return one_by_one(params, item_ids[:, :length], positions[:, :length])

        return score_rows

    def score(params, item_ids, positions):
        margin = [(0, 0), (0, sizes[-1] - item_ids.shape[1])]
        item_ids = jnp.pad(item_ids, margin)
        padded = jnp.pad(positions, margin, constant_values=-1)
        longer_than = jnp.array(positions.shape[1]) > jnp.array(sizes[:-1], jnp.int32)
        smallest = jnp.sum(longer_than, dtype=jnp.int32)
        return jax.lax.switch(smallest, [branch(n) for n in sizes], params, item_ids, padded)

    rows, length = jax.export.symbolic_shape("b, l", constraints=[f"l <= {sizes[-1]}"])
    ints = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    params = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in trained_model.named(model.params).items()
    }
    return jax.export.export(jax.jit(score), platforms=PLATFORMS)(params, ints, ints)
