"""Keeps what kernels compiled to, so that only kernels that changed are compiled again."""

import hashlib
import importlib.metadata
import json
import os
import pathlib

_READERS = ("compiler", "executable", "kernels", "machine_code", "targets")
_COMPILERS = ("jax", "jaxlib")
_COMPILERS += tuple(f"jax-cuda{n}-{part}" for n in (12, 13) for part in ("plugin", "pjrt"))


class Cache:
    """A folder with a file for each kernel and GPU."""

    def __init__(self, folder: pathlib.Path):
        """Opens it, whether or not it exists.

        Args:
          folder: of this cache alone.
        """
        self._folder = folder
        self._versions = [*map(_version, _COMPILERS)]
        here = pathlib.Path(__file__)
        self._versions += [here.with_name(f"{name}.py").read_text() for name in _READERS]

    def key(self, *parts: str) -> str:
        """Names what was compiled; by other compilers, or read by other code, it has another name.

        Args:
          *parts: all that the result depends on besides.
        """
        return hashlib.sha256(json.dumps([*parts, *self._versions]).encode()).hexdigest()

    def get(self, key: str) -> dict | None:
        """Returns what was kept, if anything was."""
        path = self._path(key)
        return json.loads(path.read_text()) if path.exists() else None

    def put(self, key: str, value: dict) -> None:
        """Keeps a value for good; a process that is killed meanwhile leaves no half of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._path(f"{key}.{os.getpid()}")
        unfinished.write_text(json.dumps(value))
        unfinished.replace(self._path(key))

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / f"{key}.json"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
