"""Turns a table of raw ids into sorted events of numbers, without holding the table in memory."""

import pathlib
from typing import NamedTuple

import numpy as np
import polars as pl

from blossom_jax.data.event_parts import EVENT, EventParts
from blossom_jax.data.filters import Counts
from blossom_jax.errors import UserError

MICROSECONDS = 1_000_000  # of a second
_BATCH_EVENTS = 2**18
_MOST_UNMERGED = 2**20  # ids of batches that are counted, but not yet together


class CodedEvents(NamedTuple):
    """Events by numbers, and what the numbers mean.

    Attributes:
      parts: The events, by user and time, times in microseconds (0 where there are none).
      counts: Events of each user and item.
      user_ids: str[users], raw id of each code.
      item_ids: str[items], likewise.
    """

    parts: EventParts
    counts: Counts
    user_ids: np.ndarray
    item_ids: np.ndarray


def code_events(
    table: pl.LazyFrame, folder: str | pathlib.Path, *, newest_first: bool
) -> CodedEvents:
    """Numbers users and items in order of first appearance, and sorts the events.

    The table is read three times, for its users, for its items and for the events.

    Args:
      table: Columns user, item and optionally time, as in `prepare.from_table`.
      folder: An empty one, where the events are kept.
      newest_first: Whether rows run backwards in time.

    Raises:
      UserError: An id with a line break in it.
    """
    schema = table.collect_schema()
    users = _distinct(table, "user", newest_first)
    items = _distinct(table, "item", newest_first)
    time = pl.lit(0)
    if "time" in schema:
        time = pl.col("time").cast(pl.Int64) * MICROSECONDS
        if schema["time"].is_temporal():
            time = pl.col("time").cast(pl.Datetime("us")).cast(pl.Int64)
    coded = table.select(_code("user", users), _code("item", items), time=time)
    parts = EventParts(folder, users["events"].to_numpy())
    for batch in coded.collect_batches(chunk_size=_BATCH_EVENTS, engine="streaming"):
        events = np.empty(len(batch), EVENT)
        for name in EVENT.names or ():
            events[name] = batch[name].to_numpy()
        parts.append(events)
    parts.sort(newest_first=newest_first)
    counts = Counts(*(ids["events"].to_numpy().astype(np.int64) for ids in (users, items)))
    return CodedEvents(parts, counts, *(np.array(ids["id"], np.str_) for ids in (users, items)))


def _distinct(table: pl.LazyFrame, column: str, newest_first: bool) -> pl.DataFrame:
    """Returns columns id and events, in order of first appearance.

    Batches are counted one by one, since the streaming engine holds all rows of a `group_by` whose
    groups are many.
    """
    row = pl.col("row").cast(pl.Int64)
    ids = table.select(id=pl.col(column).cast(pl.String)).with_row_index("row")
    schema = {"id": pl.String, "first": pl.Int64, "events": pl.get_index_type()}
    counted = [pl.DataFrame(schema=schema)]
    for batch in ids.collect_batches(chunk_size=_BATCH_EVENTS, engine="streaming"):
        first = -row.max() if newest_first else row.min()
        counted.append(batch.group_by("id").agg(first=first, events=pl.len()))
        if sum(map(len, counted[1:])) > max(_MOST_UNMERGED, len(counted[0])):
            counted = [_merge(counted)]
    found = _merge(counted).sort("first").select("id", "events")
    if found["id"].str.contains("\n", literal=True).any():
        raise UserError("an id holds a line break; ids must be one line each")
    return found


def _merge(counted: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(counted).group_by("id").agg(pl.col("first").min(), pl.col("events").sum())


def _code(column: str, ids: pl.DataFrame) -> pl.Expr:
    return pl.col(column).cast(pl.String).cast(pl.Enum(ids["id"])).to_physical()
