"""Reads logs whose columns have names: CSV, TSV, RecBole .inter, Parquet, JSON lines."""

import contextlib
import csv
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import polars as pl

from blossom_jax.data.text_formats import Records, undecodable
from blossom_jax.errors import UserError


class Columns(NamedTuple):
    """Names of the columns to read; "" = not named, and for time: the log has none."""

    user: str = ""
    item: str = ""
    time: str = ""


UNNAMED = Columns()


def choose_columns(
    path: pathlib.Path, present: Sequence[str], wanted: Columns, defaults: Columns
) -> Columns:
    """Fills in default names and checks that every column is there.

    A default time column that is absent means a log without times; a named one must exist.

    Raises:
      UserError: A missing column, or none named; lists those present.
    """
    default_time = defaults.time if defaults.time in present else ""
    chosen = Columns(
        wanted.user or defaults.user, wanted.item or defaults.item, wanted.time or default_time
    )
    listed = ", ".join(present) + _other_separator(present)
    if not (chosen.user and chosen.item):
        raise UserError(f"{path}: name the user and the item column; it has: {listed}")
    for column in filter(None, chosen):
        if column not in present:
            raise UserError(f"{path} has no column {column!r}; it has: {listed}")
    return chosen


def _other_separator(present: Sequence[str]) -> str:
    """Says what seems to stand between columns where they were read as one."""
    found = [mark for mark in (";", "\t", "|", ",") if len(present) == 1 and mark in present[0]]
    if not found:
        return ""
    how = "--format=tsv" if found[0] == "\t" else "commas, or tabs and --format=tsv,"
    return f" (they seem to be separated by {found[0]!r}: {how} will do)"


def read_delimited(
    path: pathlib.Path,
    wanted: Columns,
    *,
    separator: str,
    quote: str | None = '"',
    typed_header: bool = False,
    defaults: Columns = UNNAMED,
) -> Records:
    """Reads a text table with a header line.

    Args:
      path: A UTF-8 file.
      wanted: Columns to read.
      separator: Between fields.
      quote: Encloses fields that hold separators; None if the format has no quoting.
      typed_header: True where header names end in ":type" (RecBole).
      defaults: Column names that stand for those not given.

    Returns:
      The records in file order.

    Raises:
      UserError: A missing column, or a header that is not UTF-8.
    """
    table = pl.scan_csv(path, separator=separator, quote_char=quote, infer_schema=False)
    try:
        names = table.collect_schema().names()
    except pl.exceptions.NoDataError:
        raise UserError(f"{path} is empty") from None
    except pl.exceptions.ComputeError as error:
        raise undecodable(path) or error from error
    if typed_header:
        table = table.rename({name: name.split(":")[0] for name in names})
    chosen = choose_columns(path, table.collect_schema().names(), wanted, defaults)
    # Polars checks the number of fields only where it reads all of them, which this takes care of.
    table = table.with_row_index("row").filter(~pl.all_horizontal(pl.exclude("row").is_null()))
    locate = functools.partial(_locate_record, path, separator, quote)
    return Records(
        _select(table, chosen),
        locate,
        lambda: undecodable(path) or _malformed(path, separator, quote),
    )


def read_parquet(path: pathlib.Path, wanted: Columns) -> Records:
    """Reads a Parquet file; ids of any type become text.

    Raises:
      UserError: A missing column, or one that holds lists or structs.
    """
    schema = pl.read_parquet_schema(path)
    chosen = choose_columns(path, list(schema), wanted, UNNAMED)
    for column in filter(None, chosen):
        if schema[column].is_nested():
            raise UserError(f"{path}: the column {column!r} holds {schema[column]}, not one value")
    table = pl.scan_parquet(path).with_row_index("row")
    return Records(_select(table, chosen), lambda row: f"{path} row {row + 1}", lambda: None)


def read_json_lines(path: pathlib.Path, wanted: Columns, *, defaults: Columns) -> Records:
    """Reads one JSON object a line, such as Yelp's reviews.

    Args:
      path: A UTF-8 file.
      wanted: Columns to read.
      defaults: Column names that stand for those not given.

    Returns:
      The records in file order.

    Raises:
      UserError: The first object lacks a name.
    """
    chosen = Columns(*(name or default for name, default in zip(wanted, defaults, strict=True)))
    if present := _first_names(path):
        choose_columns(path, present, chosen, UNNAMED)
    names = list(filter(None, chosen))
    table = pl.scan_ndjson(path, schema=dict.fromkeys(names, pl.String)).with_row_index("row")
    locate = functools.partial(_locate_json, path)
    return Records(_select(table, chosen), locate, lambda: undecodable(path) or _not_json(path))


def _select(table: pl.LazyFrame, columns: Columns) -> pl.LazyFrame:
    ids = {"user": pl.col(columns.user), "item": pl.col(columns.item)}
    time = {"time": pl.col(columns.time)} if columns.time else {}
    return table.select("row", **{k: v.cast(pl.String) for k, v in ids.items()}, **time)


def _records_of_csv(file: Iterable[str], separator: str, quote: str | None, strict: bool = False):
    if quote is None:
        return csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE)
    return csv.reader(file, delimiter=separator, quotechar=quote, strict=strict)


def _locate_record(path: pathlib.Path, separator: str, quote: str | None, row: int) -> str:
    """Finds the line of a record; a record is not a line where quotes hold line breaks."""
    with open(path, newline="", encoding="utf-8") as file:
        records = _records_of_csv(file, separator, quote)
        next(itertools.islice(records, row + 1, None), None)
        return f"{path}:{records.line_num}"


def _malformed(path: pathlib.Path, separator: str, quote: str | None) -> UserError | None:
    """Finds the first record with more fields than the header, or with a quote out of place."""
    with open(path, newline="", encoding="utf-8") as file:
        records = _records_of_csv(file, separator, quote, strict=True)
        first_line, width = 1, 0
        try:
            for record in records:
                width = width or len(record)
                if len(record) > width:
                    return UserError(
                        f"{path}:{records.line_num}: expected {width} fields as in the header, "
                        f"found {len(record)}"
                    )
                first_line = records.line_num + 1
        except csv.Error as error:
            return UserError(f"{path}:{first_line}: a quote is out of place: {error}")
    return None


def _filled_lines(path: pathlib.Path):
    with open(path, encoding="utf-8") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _locate_json(path: pathlib.Path, row: int) -> str:
    number, _ = next(itertools.islice(_filled_lines(path), row, None))
    return f"{path}:{number}"


def _first_names(path: pathlib.Path) -> list[str]:
    """Returns the names in the first object; none where that is none, which is told later."""
    with contextlib.suppress(ValueError, AttributeError, StopIteration):
        return list(json.loads(next(_filled_lines(path))[1]).keys())
    return []


def _not_json(path: pathlib.Path) -> UserError | None:
    for number, line in _filled_lines(path):
        try:
            if isinstance(json.loads(line), dict):
                continue
        except ValueError:
            pass
        return UserError(f"{path}:{number}: expected a JSON object, found {line.strip()[:80]!r}")
    return None


_INTER = Columns("user_id", "item_id", "timestamp")
_YELP = Columns("user_id", "business_id", "date")

COLUMN_FORMATS: dict[str, Callable[[pathlib.Path, Columns], Records]] = {
    "csv": functools.partial(read_delimited, separator=","),
    "tsv": functools.partial(read_delimited, separator="\t"),
    "inter": functools.partial(
        read_delimited, separator="\t", quote=None, typed_header=True, defaults=_INTER
    ),
    "parquet": read_parquet,
    "yelp_json": functools.partial(read_json_lines, defaults=_YELP),
}
