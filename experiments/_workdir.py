"""The files of a run's folder besides its checkpoints and logs."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator

import jax
import ml_collections

from blossom_jax import catalogue, data, hosts, popularity, trained_model
from blossom_jax.config import ModelConfig
from blossom_jax.errors import UserError
from blossom_jax.losses import LossConfig
from blossom_jax.schedule import Schedule
from experiments import _cli

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# May change between parts of a run: the batches are the same whoever prepares them, and so are the
# numbers wherever arrays lie, but for the order in which devices add up.
# Data are told by their content, which a checkpoint remembers, and not by their place.
_FREE_TO_CHANGE = {"data.num_workers", "data.path", "data.cache_dir", "mesh.data", "mesh.model"}


def check_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses to continue a run with another config.

    Raises:
      UserError: Names every key that differs, with both values; or the folder is a file, or has
        checkpoints without a config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; the workdir must be a folder")
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise UserError(f"{workdir} has checkpoints but no config.json: take another --workdir")
        return
    there, here = (_fixed(values) for values in (read_config(workdir), config))
    if differing := hosts.differences(there, here, "there", "here"):
        raise UserError(
            f"{workdir} holds a run with another config: {differing}; "
            "choose another --workdir, or the same values"
        )


def _fixed(config: ml_collections.ConfigDict) -> dict[str, object]:
    return {k: value for k, value in _cli.flatten(config).items() if k not in _FREE_TO_CHANGE}


def check_same(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses to go on where the processes of a run have different configs or folders.

    Raises:
      UserError: In every process, with all that differs.
    """
    files = ("config.json", "results.json")
    there = {f"whether {workdir / name} exists": (workdir / name).exists() for name in files}
    hosts.check_same(_cli.flatten(config) | there)


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the config that a run was started with, locked.

    A value that did not exist yet has its default, which changes nothing.

    Raises:
      UserError: There is none, or it cannot be read.
    """
    config = trained_model.read_config(workdir)
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    config["model"] = defaults | config["model"]
    later = {
        "stop_at": Schedule.stop_at,
        "loss_implementation": LossConfig.loss_implementation,
    }
    config["train"] = later | config["train"]
    return ml_collections.ConfigDict(config).lock()


def write_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes config.json, into a folder that it makes if need be; the first process does."""
    _write_json(workdir / "config.json", config.to_dict())


def write_catalogue(
    workdir: pathlib.Path, interactions: data.Interactions, split: data.Split
) -> None:
    """Writes items.json, so that the model can be used without the log; the first process does."""
    if jax.process_index() == 0:
        counts = popularity.item_counts(interactions, split)[1:]
        item_ids = interactions.item_ids.tolist()
        catalogue.save(catalogue.Catalogue(interactions.name, item_ids, counts), workdir)


def read_results(workdir: pathlib.Path) -> dict | None:
    """Returns results.json of a finished run, or None.

    Raises:
      UserError: It cannot be read.
    """
    path = workdir / "results.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged; delete it, and the same command tests the run again: {error}"
        ) from error


def write_results(workdir: pathlib.Path, results: dict) -> None:
    """Writes results.json, which also marks the run as finished; the first process does."""
    _write_json(workdir / "results.json", results)


def make(workdir: pathlib.Path) -> None:
    """Makes the folder of a run where there is none.

    Raises:
      UserError: It cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir} cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a folder, for as long as this one does.

    The system lets go of the lock when the process ends, however it does. Of several processes of a
    run the first has it; where a file system knows no locks there is none.

    Raises:
      UserError: Another process trains there.
    """
    if fcntl is None or jax.process_index() != 0:
        yield
        return
    with open(workdir / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{workdir}: another process trains there; wait for it, or take another --workdir"
            ) from error
        except OSError:
            pass
        yield


def _write_json(path: pathlib.Path, value: dict) -> None:
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)
