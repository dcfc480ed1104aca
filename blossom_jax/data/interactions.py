"""A prepared interaction log: users one after another, in plain .npy files that are mapped.

Any event is reached at random without reading or decoding the rest, which is what Grain's workers
need: they share the mapped pages.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from blossom_jax.data.ragged import ragged_arange, slabs
from blossom_jax.errors import UserError

_CARD = "card.json"
_IDS_AT_ONCE = 2**16  # that become Python's text, which takes ten times their bytes
_HOW_TO_PREPARE = (
    "python -m experiments.prepare_data --input FILE --user-column U --item-column I "
    "--time-column T --output DIR"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
    """A prepared log.

    One that was loaded is pickled as its directory, so that a worker process maps the files
    instead of receiving the arrays.

    Attributes:
      name: Of the data set.
      items: int32[num_events], 1..num_items, user by user, each user's in time order.
      times: int64[num_events], Unix seconds; None where the log has no times.
      offsets: int64[num_users + 1]; user u owns items[offsets[u] : offsets[u + 1]].
      user_ids: str[num_users], raw ids.
      item_ids: str[num_items]; the raw id of item k stands at k - 1.
      card: What it was made from, and how: JSON values only.
      directory: Where it was loaded from; "" where it exists in memory only.
    """

    name: str
    items: Int[np.ndarray, "events"]
    times: Int[np.ndarray, "events"] | None
    offsets: Int[np.ndarray, "users_plus_1"]
    user_ids: np.ndarray
    item_ids: np.ndarray
    card: dict
    directory: str = ""

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    @property
    def num_events(self) -> int:
        """Number of events."""
        return len(self.items)

    @functools.cached_property
    def content_hash(self) -> str:
        """sha256 of the arrays and the id maps; it does not depend on name, card or place."""
        digest = hashlib.sha256()
        times = np.empty(0, np.int64) if self.times is None else self.times
        for array in (self.items, times, self.offsets):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        for ids in (self.user_ids, self.item_ids):
            for lines in _lines(ids):
                digest.update(lines.encode())
        return digest.hexdigest()

    def stretches(
        self, begin: Int[np.ndarray, "n"], end: Int[np.ndarray, "n"]
    ) -> Iterator[tuple[Int[np.ndarray, "events"], Int[np.ndarray, "events"]]]:
        """Reads stretches of the log, some million events at a time.

        Args:
          begin: First event of each stretch.
          end: The event after its last.

        Yields:
          For every event, the number of its stretch, ascending, and its item.
        """
        for part in slabs(end - begin):
            owner, event = ragged_arange(end[part] - begin[part])
            yield part.start + owner, self.items[begin[part][owner] + event]

    def __reduce__(self):
        if self.directory:
            return _read, (pathlib.Path(self.directory),)  # whoever pickles it has checked it
        return Interactions, tuple(getattr(self, f.name) for f in dataclasses.fields(self))


def save(interactions: Interactions, directory: str | pathlib.Path) -> None:
    """Writes a log as a folder, whole or not at all; a prepared log that was there is replaced.

    Args:
      interactions: The log.
      directory: The folder: items.npy, times.npy (where there are times), offsets.npy, users.txt,
        items.txt, card.json.

    Raises:
      UserError: The folder holds something else than a prepared log.
    """
    directory = pathlib.Path(directory).resolve()
    refuse_foreign(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write(interactions, temporary)
        _put_in_place(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_foreign(directory: str | pathlib.Path) -> None:
    """Checks that a folder is absent, empty or a prepared log, and so may be written.

    Raises:
      UserError: It is a file, or holds something else.
    """
    directory = pathlib.Path(directory)
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file; the output must be a folder")
    if any(directory.iterdir()) and not (directory / _CARD).is_file():
        raise UserError(f"{directory} is not empty and not a prepared log; it is left as it is")


def _write(interactions: Interactions, folder: pathlib.Path) -> None:
    folder.chmod(0o755)  # mkdtemp's own mode would shut out other users of a shared cache
    arrays = {"items": interactions.items, "offsets": interactions.offsets}
    if interactions.times is not None:
        arrays["times"] = interactions.times
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for name, ids in (("users", interactions.user_ids), ("items", interactions.item_ids)):
        with (folder / f"{name}.txt").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(ids))
    card = {**interactions.card, "name": interactions.name}
    card["content_hash"] = interactions.content_hash
    (folder / _CARD).write_text(json.dumps(card, indent=2) + "\n")


def _lines(ids: np.ndarray) -> Iterator[str]:
    """Yields the ids one a line, many at a time."""
    for begin in range(0, len(ids), _IDS_AT_ONCE):
        yield "".join(f"{text}\n" for text in ids[begin : begin + _IDS_AT_ONCE].tolist())


def _put_in_place(temporary: pathlib.Path, directory: pathlib.Path) -> None:
    try:
        os.rename(temporary, directory)  # works over an empty folder too
    except OSError:
        old = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        os.rename(directory, old)
        os.rename(temporary, directory)
        shutil.rmtree(old)


def load(directory: str | pathlib.Path) -> Interactions:
    """Opens a prepared log; the events stay on disk and are mapped.

    Raises:
      UserError: The folder is not a prepared log (says how to make one) or is damaged.
    """
    directory = pathlib.Path(directory)
    if not (directory / _CARD).is_file():
        raise UserError(f"{directory} is not a prepared log; make one with: {_HOW_TO_PREPARE}")
    try:
        log = _read(directory)
        if log.card["content_hash"] != log.content_hash:
            raise ValueError("its files changed since it was prepared")
        return log
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{directory} is damaged; delete it and prepare it again: {error}"
        ) from error


def _read(directory: pathlib.Path) -> Interactions:
    card = json.loads((directory / _CARD).read_text())
    times = directory / "times.npy"
    log = Interactions(
        card["name"],
        np.load(directory / "items.npy", mmap_mode="r"),
        np.load(times, mmap_mode="r") if times.is_file() else None,
        np.load(directory / "offsets.npy"),
        _read_ids(directory / "users.txt"),
        _read_ids(directory / "items.txt"),
        card,
        str(directory.resolve()),
    )
    events = {len(log.items), int(log.offsets[-1])}
    events |= set() if log.times is None else {len(log.times)}
    if len(events) > 1 or len(log.offsets) != log.num_users + 1:
        raise ValueError("its files disagree about the number of users or events")
    return log


def _read_ids(path: pathlib.Path) -> np.ndarray:
    with open(path, encoding="utf-8", newline="\n") as file:
        return np.array(file.read().split("\n")[:-1], dtype=np.str_)
