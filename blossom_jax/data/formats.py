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
# Slashes between year, month and day too; not a date that begins with the day or the month.
_ISO = (
    r"^\s*(?P<date>\d{4}-\d\d-\d\d|\d{4}/\d\d/\d\d)"
    r"(?:[Tt ](?P<clock>\d\d:\d\d)(?P<seconds>:\d\d(?:\.\d+)?)?"
    r"\s*(?P<offset>[Zz]|[+-]\d\d:?\d\d)?)?\s*$"
)

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
        raise UserError(
            f"{path}: the format is not clear from its name; give --format=user_item (a pair a "
            "line), user_items (a user and all of their items a line), or another: "
            f"{', '.join(FORMATS)}"
        )
    return _SUFFIXES[suffix]


def scan_table(path: str | pathlib.Path, format: str, columns: Columns = UNNAMED) -> pl.LazyFrame:
    """Opens a log and checks all of it; what is returned reads it again, a batch at a time.

    Args:
      path: The file.
      format: One of `FORMATS`.
      columns: Names of the columns, for formats that have named ones.

    Returns:
      Columns user (text), item (text) and, if the log has times, time (Datetime, microseconds),
      with rows in file order.

    Raises:
      UserError: A missing file, a malformed line (named), a missing column (lists those present),
        a missing value or a time that is not one (line named), or a file without interactions.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        return _check(path, _read(path, format, columns))
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path} cannot be read as {format}: {str(error).splitlines()[0]}"
        ) from None


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


def _check(path: pathlib.Path, records: Records) -> pl.LazyFrame:
    """Refuses a log that is empty, or a value of it that is missing or no time."""
    schema = records.table.collect_schema()
    names = [name for name in ("user", "item", "time") if name in schema]
    num_rows, has_text = _survey(records, schema.get("time"))
    if not num_rows:
        raise UserError(f"{path} holds no interactions")
    table = records.table.select("row", *(_missing_as_null(name, schema[name]) for name in names))
    exact = _microseconds(schema["time"], has_text) if "time" in names else pl.lit(0)
    table = table.with_columns(exact=exact)
    bad = pl.any_horizontal(pl.col(name).is_null() for name in (*names, "exact"))
    first_bad = table.filter(bad).head(1).collect(engine="streaming")
    for row in first_bad.rows(named=True):
        place = records.locate(row["row"])
        for name in names:
            if row[name] is None:
                raise UserError(f"{place}: the {name} is missing")
        raise UserError(
            f"{place}: the time {row['time']!r} is neither a number nor an ISO 8601 time"
        )
    time = {"time": pl.col("exact").cast(pl.Datetime("us"))} if "time" in names else {}
    return table.select("user", "item", **time)


def _missing_as_null(name: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(name)
    if dtype != pl.String:
        return value
    return pl.when(value.str.strip_chars() != "").then(value)


def _survey(records: Records, time: pl.DataType | None) -> tuple[int, bool]:
    """Reads the file once: counts its rows, and tells whether a time is text that is no number."""
    is_text = pl.lit(False)
    if time == pl.String:
        value = pl.col("time")
        is_text = (value.is_not_null() & value.cast(pl.Float64, strict=False).is_null()).any()
    read = records.table.select(rows=pl.len(), is_text=is_text)
    try:
        return read.collect(engine="streaming").row(0)
    except pl.exceptions.ComputeError as error:
        raise records.diagnose() or error from error


def _microseconds(dtype: pl.DataType, has_text: bool) -> pl.Expr:
    """Returns int64 microseconds since 1970, null where the column time cannot be read."""
    time = pl.col("time")
    if dtype.is_temporal():
        return time.cast(pl.Datetime("us")).to_physical()
    exact = _scale_numbers(time.cast(pl.Float64, strict=False))
    return pl.coalesce(exact, _iso_microseconds(time)) if has_text else exact


def _iso_microseconds(time: pl.Expr) -> pl.Expr:
    """Reads ISO 8601, UTC where there is no offset; null for all else, each value for itself."""
    part = time.str.extract_groups(_ISO).struct
    offset = part.field("offset").str.replace("^[Zz]$", "+00:00")
    offset = offset.str.replace(r"^([+-]\d\d):?(\d\d)$", "$1:$2")
    full = pl.concat_str(
        part.field("date").str.replace_all("/", "-"),
        pl.lit(" "),
        part.field("clock").fill_null("00:00"),
        part.field("seconds").fill_null(":00"),
        offset.fill_null("+00:00"),
    )
    found = full.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", strict=False, time_unit="us")
    return found.to_physical()


def _scale_numbers(value: pl.Expr) -> pl.Expr:
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
    return microseconds.round().cast(pl.Int64, strict=False)
