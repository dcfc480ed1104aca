"""Makes a prepared log of a table of events: numbers, sorts and filters them."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from blossom_jax.data import filters
from blossom_jax.data.coding import MICROSECONDS, CodedEvents, code_events
from blossom_jax.data.interactions import Interactions, load, refuse_foreign, save
from blossom_jax.errors import UserError


def prepare(
    table: pl.DataFrame | pl.LazyFrame, directory: str | pathlib.Path, **options: Any
) -> Interactions:
    """Builds a log in a folder, on the disk from its first event to its last.

    Args:
      table: As in `from_table`.
      directory: As in `interactions.save`.
      **options: Of `from_table`.

    Returns:
      The log as `interactions.load` opens it.

    Raises:
      UserError: As `from_table` and `interactions.save`.
    """
    parent = pathlib.Path(directory).resolve().parent
    refuse_foreign(directory)
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".preparing.", dir=parent) as folder:
        save(from_table(table, folder=folder, **options), directory)
    return load(directory)


def from_table(
    table: pl.DataFrame | pl.LazyFrame,
    *,
    name: str,
    min_user_events: int = 1,
    min_item_events: int = 1,
    repeats: str = "keep",
    newest_first: bool = False,
    card: dict | None = None,
    folder: str | pathlib.Path | None = None,
) -> Interactions:
    """Builds a log: sorts by time, filters, and numbers the items.

    Memory grows with users and items and not with events, if `table` is lazy and there is a folder.

    Args:
      table: Columns user, item and optionally time (Unix seconds, or a polars Datetime where
        fractions matter), rows in file order. Each user's rows are sorted by time, and keep file
        order where times are equal or absent.
      name: Of the data set.
      min_user_events: Drops users with fewer events.
      min_item_events: Drops items with fewer events; with the former repeated until both hold.
      repeats: "keep", "drop_consecutive" or "latest"; holds together with the two above.
      newest_first: Whether rows run backwards in time, so that file order is their reverse.
      card: Entries to put in the card besides the filters and counts.
      folder: Where the events are kept, and mapped from; None keeps them in memory.

    Returns:
      The log. Users and items are numbered in order of first appearance in the table.

    Raises:
      UserError: No user is left with 3 events (says what dropped how many), an option out of its
        range, or an id with a line break in it.
    """
    options = filters.Options(min_user_events, min_item_events, repeats)
    options.check()
    table = table.lazy()
    timed = "time" in table.collect_schema()
    with tempfile.TemporaryDirectory(prefix=".events.", dir=folder) as scratch:
        coded = code_events(table, scratch, newest_first=newest_first)
        steps = filters.filter_events(coded.parts, coded.counts, options)
        lengths = coded.counts.user[coded.counts.user > 0]
        if lengths.max(initial=0) < 3:
            raise UserError(_too_short(name, steps))
        items, times = _columns(coded, timed, folder)
    log = Interactions(
        name,
        items,
        times,
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        coded.user_ids[coded.counts.user > 0],
        coded.item_ids[coded.counts.item > 0],
        card={},
    )
    sizes = [step._asdict() for step in steps]
    made = {"filters": options._asdict(), "sizes": sizes, "content_hash": log.content_hash}
    return dataclasses.replace(log, card={"name": name, **(card or {}), **made})


def _columns(
    coded: CodedEvents, timed: bool, folder: str | pathlib.Path | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the items, numbered from 1 without gaps, and the times in seconds or None."""
    number = np.cumsum(coded.counts.item > 0, dtype=np.int32)
    num_events = int(coded.counts.user.sum())

    def join(name, dtype, pieces):
        path = None if folder is None else pathlib.Path(folder) / f"{name}.npy"
        return _join(pieces, dtype, num_events, path)

    items = join("items", np.int32, (number[events["item"]] for events in coded.parts))
    if not timed:
        return items, None
    seconds = (events["time"] // MICROSECONDS for events in coded.parts)
    return items, join("times", np.int64, seconds)


def _join(
    pieces: Iterable[np.ndarray], dtype: type, length: int, path: pathlib.Path | None
) -> np.ndarray:
    """Joins arrays, in memory or in a file that is mapped."""
    if path is None:
        return np.concatenate([*pieces]).astype(dtype)
    with path.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            piece.astype(dtype).tofile(file)
    return np.load(path, mmap_mode="r")


def _too_short(name: str, steps: list[filters.Step]) -> str:
    read = steps[0]
    return (
        f"{name}: no user is left with 3 events, one each to train, validate and test; read "
        f"{read.users} users, {read.items} items and {read.events} events; "
        f"{filters.describe_drops(steps)}"
    )
