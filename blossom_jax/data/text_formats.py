"""Reads interaction logs whose lines have fields by position, not by name.

Every reader returns `Records`: the raw strings, which are yet to be read, and a function from a row
to its place in the file, so that whoever finds a bad value can name the line.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl

from blossom_jax.errors import UserError


class Records(NamedTuple):
    """Raw values as a file has them.

    Attributes:
      table: Columns row (0-based), user, item and, if the file has times, time; null = missing.
      locate: Turns a row into "file:line".
      diagnose: Finds the line at which polars stopped, if there is one.
    """

    table: pl.LazyFrame
    locate: Callable[[int], str]
    diagnose: Callable[[], UserError | None]


def read_fields(path: pathlib.Path, *, separator: str, names: Sequence[str]) -> Records:
    """Reads one interaction a line.

    Args:
      path: A UTF-8 text file.
      separator: Between fields; " " stands for any run of blanks and tabs.
      names: What each field of a line is: "user", "item", "time" or "" for one to be ignored.

    Returns:
      The records in file order.

    Raises:
      UserError: A line with another number of fields, or a file that is not UTF-8.
    """
    lines = _scan_lines(path)
    lines = lines.with_columns(_split("line", separator).alias("fields"))
    shape = separator.join(name or "..." for name in names)
    _refuse_first(path, lines.filter(pl.col("fields").list.len() != len(names)), shape)
    columns = [pl.col("fields").list.get(i).alias(name) for i, name in enumerate(names) if name]
    return _records(path, lines.select("row", *columns))


def read_sequences(path: pathlib.Path) -> Records:
    """Reads "user item item ..." lines: one user a line, items in time order.

    Raises:
      UserError: A line without items, or a file that is not UTF-8.
    """
    lines = _scan_lines(path)
    lines = lines.with_columns(_split("line", " ").alias("fields"))
    _refuse_first(path, lines.filter(pl.col("fields").list.len() < 2), "user item item ...")
    table = lines.select(
        "row",
        user=pl.col("fields").list.first(),
        item=pl.col("fields").list.slice(1),
    ).explode("item")
    return _records(path, table)


def _scan_lines(path: pathlib.Path) -> pl.LazyFrame:
    """Returns columns row and line; blank lines are left out, but keep their number."""
    lines = pl.scan_lines(path, name="line", row_index_name="row")
    return lines.with_columns(pl.col("line").str.strip_chars()).filter(pl.col("line") != "")


def _split(column: str, separator: str) -> pl.Expr:
    text = pl.col(column)
    if separator == " ":
        text = text.str.replace_all(r"\s+", " ")
    return text.str.split(separator)


def _refuse_first(path: pathlib.Path, bad_lines: pl.LazyFrame, shape: str) -> None:
    try:
        first = bad_lines.select("row", "line").head(1).collect(engine="streaming")
    except pl.exceptions.ComputeError as error:
        raise undecodable(path) or error from error
    for row, line in first.rows():
        raise UserError(f'{path}:{row + 1}: expected "{shape}", found {line[:80]!r}')


def _records(path: pathlib.Path, table: pl.LazyFrame) -> Records:
    return Records(table, lambda row: f"{path}:{row + 1}", lambda: undecodable(path))


def undecodable(path: pathlib.Path) -> UserError | None:
    """Returns an error that names the first line which is not UTF-8, or None if all are."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return UserError(f"{path}:{number}: this line is not UTF-8 text ({error.reason})")
    return None
