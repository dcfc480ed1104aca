"""Reads any supported interaction log into one table of user, item and time.

    user_item       "user item" lines, oldest first
    user_items      "user item item ..." lines, one user a line
    user_item_time  "user item time" lines
    checkins        SNAP check-ins: "user time latitude longitude location" lines
    ratings_dat     MovieLens ratings.dat: "user::item::rating::time" lines
    inter           RecBole atomic file: tab-separated, header of name:type
    csv, tsv        a header line names the columns
    parquet         named columns
    yelp_json       Yelp's reviews: one JSON object a line

Times may be ISO 8601 (UTC where no zone is given) or numbers since 1970. A number's unit follows
from its size: below 1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds, else
nanoseconds. (Seconds reach 1e11 in the year 5138; milliseconds passed it in 1973.)
"""

import functools
import pathlib
from collections.abc import Callable

import polars as pl

from blossom_jax.data import text_formats
from blossom_jax.data.column_formats import COLUMN_FORMATS, UNNAMED, Columns
from blossom_jax.data.text_formats import Records
from blossom_jax.errors import UserError

_RATINGS_DAT = ("user", "item", "", "time")
_CHECKINS = ("user", "time", "", "", "item")

LINE_FORMATS: dict[str, Callable[[pathlib.Path], Records]] = {
    "user_item": functools.partial(text_formats.read_fields, separator=" ", names=("user", "item")),
    "user_items": text_formats.read_sequences,
    "user_item_time": functools.partial(
        text_formats.read_fields, separator=" ", names=("user", "item", "time")
    ),
    "checkins": functools.partial(text_formats.read_fields, separator=" ", names=_CHECKINS),
    "ratings_dat": functools.partial(text_formats.read_fields, separator="::", names=_RATINGS_DAT),
}
FORMATS = (*LINE_FORMATS, *COLUMN_FORMATS)
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "inter",
    ".parquet": "parquet",
    ".dat": "ratings_dat",
    ".json": "yelp_json",
    ".jsonl": "yelp_json",
}


def guess_format(path: str | pathlib.Path) -> str:
    """Returns the format that a file's suffix stands for.

    Raises:
      UserError: A suffix that stands for none.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: the format is not clear from its name; give {_choices()}")
    return _SUFFIXES[suffix]


def read_table(path: str | pathlib.Path, format: str, columns: Columns = UNNAMED) -> pl.DataFrame:
    """Reads a log.

    Args:
      path: The file.
      format: One of `FORMATS`.
      columns: Names of the columns, for formats that have named ones.

    Returns:
      Columns user (text), item (text) and, if the log has times, time (int64, Unix seconds, whole
      ones). Rows are in file order, except that a log with fractions of a second comes sorted by
      the exact time, because whole seconds would lose that order.

    Raises:
      UserError: A missing file, a malformed line (named), a missing column (lists those present),
        a missing value or a time that is not one (line named), or a file without interactions.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        records = _read(path, format, columns)
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path} cannot be read as {format}: {str(error).splitlines()[0]}"
        ) from None
    if records.table.is_empty():
        raise UserError(f"{path} holds no interactions")
    _refuse_missing(records)
    if "time" not in records.table.columns:
        return records.table.select("user", "item")
    return _with_seconds(records).select("user", "item", "time")


def _read(path: pathlib.Path, format: str, columns: Columns) -> Records:
    if format in COLUMN_FORMATS:
        return COLUMN_FORMATS[format](path, columns)
    if format not in LINE_FORMATS:
        raise UserError(f"unknown {format=}; give {_choices()}")
    if any(columns):
        raise UserError(f"{path}: {format} files have no named columns, so none can be chosen")
    return LINE_FORMATS[format](path)


def _choices() -> str:
    return f"one of {', '.join(FORMATS)}"


def _refuse_missing(records: Records) -> None:
    for column in ("user", "item", "time"):
        if column not in records.table.columns:
            continue
        value = pl.col(column)
        missing = value.is_null()
        if records.table[column].dtype == pl.String:
            missing |= value.str.strip_chars() == ""
        if len(bad := records.table.filter(missing)):
            raise UserError(f"{records.locate(bad['row'][0])}: the {column} is missing")


def _with_seconds(records: Records) -> pl.DataFrame:
    table = records.table.with_columns(exact=_microseconds(records.table["time"]))
    if len(bad := table.filter(pl.col("exact").is_null())):
        place, value = records.locate(bad["row"][0]), bad["time"][0]
        raise UserError(f"{place}: the time {value!r} is neither a number nor an ISO 8601 time")
    if (table["exact"] % 1_000_000 != 0).any():
        table = table.sort("exact", maintain_order=True)
    return table.with_columns(time=pl.col("exact").floordiv(1_000_000))


def _microseconds(time: pl.Series) -> pl.Series:
    """Returns int64 microseconds since 1970, null where `time` cannot be read."""
    if time.dtype.is_temporal():
        return time.cast(pl.Datetime("us")).to_physical()
    exact = _scale_numbers(time.cast(pl.Float64, strict=False))
    if time.dtype == pl.String and exact.has_nulls():
        iso = time.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
        exact = exact.fill_null(iso.to_physical())
    return exact


def _scale_numbers(number: pl.Series) -> pl.Series:
    value = pl.col("number")
    microseconds = (
        pl.when(~value.is_finite())
        .then(None)
        .when(value.abs() < 1e11)
        .then(value * 1e6)
        .when(value.abs() < 1e14)
        .then(value * 1e3)
        .when(value.abs() < 1e17)
        .then(value)
        .otherwise(value / 1e3)
    )
    frame = number.alias("number").to_frame()
    return frame.select(microseconds.round().cast(pl.Int64, strict=False)).to_series()
