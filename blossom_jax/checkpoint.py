"""Checkpoints of one run: the two latest and the best, written by Orbax in the background.

Orbax makes a checkpoint appear whole or not at all; it does not notice a file that is damaged
later. So every finished checkpoint is sealed with the digests of its files, and one whose seal
is missing or broken is passed over. Of several processes the first seals and judges, and they all
go by what it finds.
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from blossom_jax import hosts
from blossom_jax.errors import UserError

_SEAL = "sha256.json"


class Checkpoints:
    """Saves and restores the state of one run.

    On disk a checkpoint is `<directory>/<step>/` with the Orbax items "params", "optimizer" and
    "progress" (JSON), so that the parameters can be read without the rest.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        read_only: bool = False,
        report: Callable[[str], None] = print,
    ):
        """Opens the folder, which need not exist.

        Args:
          directory: Where the checkpoints are.
          read_only: Leaves everything as it is: another process may be writing there.
          report: Takes the line that says that a damaged checkpoint was passed over.
        """
        self._directory = pathlib.Path(directory).absolute()
        self._read_only = read_only
        self._report = report
        self._keep = _LatestTwoAndBest()
        self._sealing = threading.Thread()
        self._unsealed: OSError | None = None

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Made when it is needed, as it complains at length about damaged checkpoints.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            create=not self._read_only,
            cleanup_tmp_directories=not self._read_only,
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "progress": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def save(self, step: int, state: dict, progress: dict, best_step: int) -> None:
        """Copies the state to the host, and writes it in the background.

        Args:
          step: Number of steps taken; saving a step again changes nothing.
          state: {"params", "opt_state", "step"}; may be donated once this returns.
          progress: JSON: what else a run needs to continue.
          best_step: The checkpoint to keep for good, this one or an earlier one.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        self._keep.best_step = best_step
        rest = {name: value for name, value in state.items() if name != "params"}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state["params"]),
                optimizer=ocp.args.StandardSave(rest),
                progress=ocp.args.JsonSave(progress),
            ),
        )
        self._sealing = threading.Thread(target=self._seal, args=(step,))
        self._sealing.start()

    def restore_latest(self, like: dict) -> tuple[dict, dict] | None:
        """Returns (state, progress) of the latest checkpoint that is whole, or None.

        Damaged checkpoints after it are reported and, where this may write, removed: the run will
        write them again.

        Args:
          like: The state as ShapeDtypeStructs with shardings.

        Raises:
          UserError: A whole checkpoint that another version of the model wrote.
        """
        step = _judged_by_the_first(lambda: self._latest_whole(remove=not self._read_only))
        if step is None:
            return None
        rest = {name: value for name, value in like.items() if name != "params"}
        restored = self._restore(step, {"params": like["params"], "optimizer": rest})
        return {"params": restored.params, **restored.optimizer}, restored.progress

    def steps(self) -> list[int]:
        """Returns the steps whose checkpoints are there, whole or not, ascending."""
        return sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdigit())

    def latest_progress(self) -> dict | None:
        """Returns the progress of the latest checkpoint that is whole, or None."""
        step = _judged_by_the_first(lambda: self._latest_whole(remove=False))
        if step is None:
            return None
        return self._restore(step, {}).progress

    def restore_params(self, step: int, like: Any) -> Any | None:
        """Returns the parameters of one checkpoint, or None (and says so) if it is damaged.

        Args:
          step: One that `save` was given as `best_step`.
          like: The parameters as ShapeDtypeStructs with shardings.

        Raises:
          UserError: A whole checkpoint that another version of the model wrote.
        """
        self.wait()
        damage = _judged_by_the_first(lambda: self._damage(step))
        if not damage:
            return self._restore(step, {"params": like}).params
        self._report(damage)
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        self.wait()
        if "_manager" in self.__dict__:
            self._manager.close()

    def _latest_whole(self, *, remove: bool) -> int | None:
        """Returns the latest step whose checkpoint is whole; reports, or removes, later ones."""
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if not damage:
                return step
            self._report(f"{damage}; falling back to the one before")
            if remove:
                shutil.rmtree(self._directory / str(step))
        return None

    def _restore(self, step: int, like: dict[str, Any]) -> ocp.args.Composite:
        """Returns the progress, and the items whose arrays are described."""
        stored = self._manager.item_metadata(step)
        for item, wanted in like.items():
            if misfit := _first_difference(stored[item], wanted):
                raise UserError(f"{self._directory / str(step)} does not fit this model: {misfit}")
        items = {name: ocp.args.StandardRestore(wanted) for name, wanted in like.items()}
        return self._manager.restore(
            step, args=ocp.args.Composite(progress=ocp.args.JsonRestore(), **items)
        )

    def wait(self) -> None:
        """Waits for the last save; raises its error here, if it had one."""
        if "_manager" in self.__dict__:  # else nothing was saved, and there need be no folder
            self._manager.wait_until_finished()
        if self._sealing.is_alive():
            self._sealing.join()
        error, self._unsealed = self._unsealed, None
        if error:
            raise error

    def _seal(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception:  # raised again, in the main thread, by `wait`
            return
        if jax.process_index() == 0:
            folder = self._directory / str(step)
            partial = folder / f"{_SEAL}.partial"
            try:
                partial.write_text(json.dumps(_digests(folder)))
                os.replace(partial, folder / _SEAL)
            except OSError as error:  # a full disk; likewise
                self._unsealed = error

    def _damage(self, step: int) -> str:
        """Says what is wrong with a checkpoint; "" if nothing is."""
        folder = self._directory / str(step)
        try:
            sealed = json.loads((folder / _SEAL).read_text())
        except (OSError, ValueError):
            return f"checkpoint {folder} is damaged or unfinished: it has no whole {_SEAL}"
        found = _digests(folder)
        for name, digest in sealed.items():
            if found.get(name) != digest:
                verb = "has changed" if name in found else "is missing"
                return f"checkpoint {folder} is damaged: its file {name} {verb}"
        return ""


def _judged_by_the_first(judge: Callable[[], Any]) -> Any:
    """Returns what the first process finds: files may change while others look at them."""
    return hosts.gather(judge() if jax.process_index() == 0 else None)[0]


class _LatestTwoAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Tells Orbax which checkpoints to keep: the last two, in case the last is damaged, and the
    one that the trainer calls best."""

    best_step = 0

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        del context
        latest = {info.step for info in checkpoints[-2:]}
        return [info.step in latest or info.step == self.best_step for info in checkpoints]


def _first_difference(stored: Any, wanted: Any) -> str:
    """Names an array that two trees do not share, or not in one shape; "" if there is none."""
    # Orbax, where shapes differ, leaves threads behind that print tracebacks.
    there, here = _shapes(stored), _shapes(wanted)
    for name in sorted(there.keys() | here.keys()):
        if name not in here:
            return f"{name} of the checkpoint is not in it"
        if name not in there:
            return f"its {name} is not in the checkpoint"
        if there[name] != here[name]:
            return f"{name} has the shape {there[name]} there, and {here[name]} in the model"
    return ""


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path).removesuffix(".value"): tuple(leaf.shape) for path, leaf in leaves}


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns {path in folder: sha256} of every file but the seal."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(_SEAL):
            with path.open("rb") as file:
                digests[str(path.relative_to(folder))] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return digests
