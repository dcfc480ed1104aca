"""Opens a data set by name: finds or fetches it, prepares it once, and reuses the prepared copy."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable

import polars as pl

from blossom_jax.data import interactions, synthetic
from blossom_jax.data.formats import scan_table
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.prepare import prepare
from blossom_jax.data.registry import DATASETS, INTERESTS, LONG_INTEREST, SYNTHETIC
from blossom_jax.data.sources import Found, find_or_download
from blossom_jax.errors import UserError

_GENERATED: dict[str, functools.partial[pl.DataFrame]] = {
    "synthetic": functools.partial(synthetic.generate, **SYNTHETIC),
    "interests": functools.partial(synthetic.generate, **INTERESTS),
    "long_interest": functools.partial(synthetic.generate_lengths, **LONG_INTEREST),
}
NAMES = (*DATASETS, *_GENERATED, "custom")
_NO_FILTERS = {"min_user_events": 1, "min_item_events": 1, "repeats": "keep"}
_LAYOUT = 1  # part of the key of prepared copies: raise it when they would come out differently


def default_cache_dir() -> pathlib.Path:
    """Returns $BLOSSOM_CACHE, or ~/.cache/blossom_jax."""
    return pathlib.Path(os.environ.get("BLOSSOM_CACHE") or "~/.cache/blossom_jax").expanduser()


def load_dataset(
    name: str,
    *,
    path: str | pathlib.Path = "",
    cache_dir: str | pathlib.Path | None = None,
    min_user_events: int = 1,
    min_item_events: int = 1,
    repeats: str = "keep",
) -> Interactions:
    """Opens a prepared log.

    Args:
      name: One of `NAMES`; "custom" needs `path`.
      path: A folder that prepare_data wrote; if given, it is what is loaded.
      cache_dir: Where downloads and prepared copies are kept; None or "" = `default_cache_dir()`.
      min_user_events: Drops users with fewer events.
      min_item_events: Drops items with fewer events; with the former repeated until both hold.
      repeats: "keep", "drop_consecutive" or "latest".

    Returns:
      The log, its events mapped from disk.

    Raises:
      UserError: An unknown name, a folder that is not a prepared log or was prepared with other
        filters, or anything wrong with the files (see `sources`, `formats`, `interactions`).
    """
    filters = {
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "repeats": repeats,
    }
    if path:
        return _load_folder(path, filters)
    if name == "custom":
        raise UserError(
            "data.name=custom needs data.path=DIR, a folder written by "
            "python -m experiments.prepare_data"
        )
    cache = pathlib.Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    if make := _GENERATED.get(name):
        return _prepare_once(cache, name, {"source": "generated", **make.keywords}, filters, make)
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
    _show_terms(name, cache)
    found = find_or_download(DATASETS[name].files, cache)
    file = found.file
    scan = functools.partial(scan_table, found.path, file.format, file.columns)
    options = {**filters, "newest_first": file.newest_first}
    return _prepare_once(cache, name, _describe(name, found), options, scan)


def _describe(name: str, found: Found) -> dict:
    return {"source": found.file.name, "sha256": found.sha256, "terms": DATASETS[name].terms}


def _prepare_once(
    cache: pathlib.Path,
    name: str,
    source: dict,
    options: dict,
    read: Callable[[], pl.DataFrame | pl.LazyFrame],
) -> Interactions:
    filters = {key: options[key] for key in _NO_FILTERS}
    key = json.dumps([_LAYOUT, source, filters])
    folder = cache / "prepared" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        return prepare(read(), folder, name=name, card=source, **options)
    return interactions.load(folder)


def _show_terms(name: str, cache: pathlib.Path) -> None:
    marker = cache / "terms" / name
    if marker.is_file():
        return
    print(f"{name}: {DATASETS[name].terms}", flush=True)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(DATASETS[name].terms + "\n")


def _load_folder(path: str | pathlib.Path, filters: dict) -> Interactions:
    log = interactions.load(path)
    done = log.card.get("filters", {})
    for key, value in filters.items():
        if value not in (_NO_FILTERS[key], done.get(key)):
            raise UserError(
                f"{path} was prepared with {key}={done.get(key)}, not {value}; prepare it again "
                f"with --{key.replace('_', '-')} {value}, or leave data.{key} at {_NO_FILTERS[key]}"
            )
    return log
