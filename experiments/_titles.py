"""Reads what items are called, from a table with a column of ids and one of titles."""

import pathlib
from collections.abc import Sequence

from blossom_jax.errors import UserError

_ID_NAMES = ("id", "item_id", "item", "movieId", "asin")
_TITLE_NAMES = ("title", "movie_title", "name")


def read_titles(path: str | pathlib.Path) -> dict[str, str]:
    """Returns {raw id: title} of a CSV, TSV or Parquet file, or of RecBole's `.item`.

    Args:
      path: A file with a header. A column "id" and one "title" are looked for, then other usual
        names; RecBole's header may have types, as in "item_id:token".

    Raises:
      UserError: No such file, no such columns, or a file that cannot be read as its suffix says.
    """
    import polars as pl  # only where titles are asked for: it takes a third of a second

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"--titles={path}: there is no such file")
    try:
        if path.suffix == ".parquet":
            table = pl.read_parquet(path)
        else:
            separator, quote = (",", '"') if path.suffix == ".csv" else ("\t", None)
            table = pl.read_csv(path, separator=separator, quote_char=quote, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"--titles={path} cannot be read: {error}") from error
    ids = table[_column(path, table.columns, _ID_NAMES)].cast(pl.String)
    titles = table[_column(path, table.columns, _TITLE_NAMES)].cast(pl.String).fill_null("")
    return dict(zip(ids.to_list(), titles.to_list(), strict=True))


def _column(path: pathlib.Path, columns: Sequence[str], names: Sequence[str]) -> str:
    plain = {column.partition(":")[0]: column for column in columns}
    for name in names:
        if name in plain:
            return plain[name]
    raise UserError(
        f"--titles={path} needs a column {names[0]!r}; it has: {', '.join(columns)}; a file that "
        "does not end in .csv or .parquet is read as separated by tabs"
    )
