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

import numpy as np
import polars as pl
from jaxtyping import Int

from blossom_jax.data import filters
from blossom_jax.errors import UserError

_CARD = "card.json"
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
            digest.update(_lines(ids).encode())
        return digest.hexdigest()

    def __reduce__(self):
        if self.directory:
            return load, (self.directory,)
        return Interactions, tuple(getattr(self, f.name) for f in dataclasses.fields(self))


def from_table(
    table: pl.DataFrame,
    *,
    name: str,
    min_user_events: int = 1,
    min_item_events: int = 1,
    repeats: str = "keep",
    card: dict | None = None,
) -> Interactions:
    """Builds a log: sorts by time, filters, and numbers the items.

    Args:
      table: Columns user, item and optionally time (Unix seconds), rows in file order. Each user's
        rows are sorted by time, and keep file order where times are equal or absent.
      name: Of the data set.
      min_user_events: Drops users with fewer events.
      min_item_events: Drops items with fewer events; with the former repeated until both hold.
      repeats: "keep", "drop_consecutive" or "latest"; holds together with the two above.
      card: Entries to put in the card besides the filters and counts.

    Returns:
      The log. Users and items are numbered in order of first appearance in the table.

    Raises:
      UserError: No user is left with 3 events (says what dropped how many), an option out of its
        range, or an id with a line break in it.
    """
    users, user_ids = _codes(table["user"])
    items, item_ids = _codes(table["item"])
    times = table["time"].to_numpy() if "time" in table.columns else None
    order = np.lexsort((users,) if times is None else (times, users))
    rows, steps = filters.surviving_events(
        users[order],
        items[order],
        min_user_events=min_user_events,
        min_item_events=min_item_events,
        repeats=repeats,
    )
    kept = order[rows]
    users, user_ids = _renumber(users[kept], user_ids)
    items, item_ids = _renumber(items[kept], item_ids)
    lengths = np.bincount(users, minlength=len(user_ids))
    if lengths.max(initial=0) < 3:
        raise UserError(_too_short(name, steps))
    log = Interactions(
        name,
        (items + 1).astype(np.int32),
        None if times is None else times[kept].astype(np.int64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        user_ids,
        item_ids,
        card={},
    )
    options = {
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "repeats": repeats,
    }
    sizes = [step._asdict() for step in steps]
    made = {"filters": options, "sizes": sizes, "content_hash": log.content_hash}
    return dataclasses.replace(log, card={"name": name, **(card or {}), **made})


def _codes(ids: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes from 0 in order of first appearance, and the id of each code."""
    ids = ids.cast(pl.String)
    distinct = ids.unique(maintain_order=True)
    if distinct.str.contains("\n", literal=True).any():
        raise UserError("an id holds a line break; ids must be one line each")
    codes = ids.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int64)
    return codes, np.array(distinct.to_list(), dtype=np.str_)


def _renumber(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Closes the gaps that dropped codes left."""
    present = np.bincount(codes, minlength=len(ids)) > 0
    return (np.cumsum(present) - 1)[codes], ids[present]


def _too_short(name: str, steps: list[filters.Step]) -> str:
    read = steps[0]
    return (
        f"{name}: no user is left with 3 events, one each to train, validate and test; read "
        f"{read.users} users, {read.items} items and {read.events} events; "
        f"{filters.describe_drops(steps)}"
    )


def _lines(ids: np.ndarray) -> str:
    return "".join(f"{text}\n" for text in ids.tolist())


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
        (folder / f"{name}.txt").write_text(_lines(ids), encoding="utf-8", newline="\n")
    card = {**interactions.card, "name": interactions.name}
    card["content_hash"] = interactions.content_hash
    (folder / _CARD).write_text(json.dumps(card, indent=2) + "\n")


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
        return _read(directory)
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
