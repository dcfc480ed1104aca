"""Finds the file of a data set, or fetches it, and checks it by sha256.

The order: a file of that name (or with .xz or .gz) in $BLOSSOM_DATA, then in the cache's folder
downloads, then the file's sources. What is fetched is written under a temporary name and renamed
once it is complete and checked. Nothing downloaded is ever unpickled or executed.
"""

import contextlib
import gzip
import hashlib
import http.client
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from blossom_jax.data.registry import File, Package, Url
from blossom_jax.errors import MissingFileError, UserError

TIMEOUT_SECONDS = 10
_PIP_LIMIT_SECONDS = 120
_PIP_OPTIONS = (
    "--quiet",
    "--no-deps",
    "--no-input",
    "--only-binary=:all:",
    "--disable-pip-version-check",
    f"--timeout={TIMEOUT_SECONDS}",
    "--retries=1",
)
_CHUNK = 1 << 20
_OPENERS: dict[str, Callable[..., Any]] = {"": open, ".xz": lzma.open, ".gz": gzip.open}
_DAMAGE = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
_FAILURES = (
    *_DAMAGE,
    OSError,
    http.client.HTTPException,
    subprocess.SubprocessError,
    UserError,
)


class Found(NamedTuple):
    """A checked file: where it lies, the sha256 of its content, and which of the files it is."""

    path: pathlib.Path
    sha256: str
    file: File


def find_or_download(files: Sequence[File], cache_dir: str | pathlib.Path) -> Found:
    """Returns the first of some alternative files that is at hand, else fetches one.

    Args:
      files: The same log in alternative files, the preferred one first.
      cache_dir: Where downloads are kept.

    Returns:
      The file, uncompressed and checked.

    Raises:
      UserError: A file at hand has another sha256, or none is at hand and none can be fetched;
        the message names what was tried, and where to put the file.
    """
    cache = pathlib.Path(cache_dir)
    for file in files:
        if found := _find(file, cache):
            return found
    return _fetch_first(files, cache)


def _find(file: File, cache: pathlib.Path) -> Found | None:
    for folder, expected in _places(file, cache):
        for suffix, opener in _OPENERS.items():
            path = folder / (file.name + suffix)
            if path.is_file() and not suffix:
                return Found(path, _check(path, _digest(path), expected), file)
            if path.is_file():
                target = cache / "expanded" / file.name
                with _named_if_broken(path), opener(path, "rb") as stream:
                    return Found(target, _store(stream, target, expected, path), file)
    return None


def _places(file: File, cache: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Yields each folder to look in, and the sha256 that a file there must have, if any."""
    if name := os.environ.get("BLOSSOM_DATA"):
        if not os.path.isdir(name):
            raise UserError(f"BLOSSOM_DATA={name} is not a folder")
        yield pathlib.Path(name), file.sha256
    record = cache / "downloads" / f"{file.name}.sha256"
    recorded = record.read_text().split()[0] if record.is_file() else ""
    yield cache / "downloads", file.sha256 or recorded


@contextlib.contextmanager
def _named_if_broken(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(origin: object, got: str, expected: str) -> str:
    if expected and got != expected:
        raise UserError(f"{origin}: wrong content, expected sha256 {expected}, got {got}")
    return got


def _store(stream: IO[bytes], target: pathlib.Path, expected: str, origin: object) -> str:
    """Copies a stream to a file and returns its sha256; the file appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as temporary:
        try:
            shutil.copyfileobj(stream, temporary, _CHUNK)
            temporary.flush()
            os.chmod(temporary.name, 0o644)  # a cache may be shared; temporary files are private
            digest = _check(origin, _digest(pathlib.Path(temporary.name)), expected)
            os.replace(temporary.name, target)
        except BaseException:
            os.unlink(temporary.name)
            raise
    return digest


def _fetch_first(files: Sequence[File], cache: pathlib.Path) -> Found:
    downloads = cache / "downloads"
    tried = []
    for file in files:
        for source in file.sources:
            target = downloads / file.name
            try:
                with _open(source) as (stream, archive):
                    digest = _store(stream, target, file.sha256, source)
            except _FAILURES as error:
                tried.append(f"{source} ({_reason(error)})")
                continue
            if not file.sha256:
                _record(target, digest, source, archive)
            return Found(target, digest, file)
    names = " or ".join(file.name for file in files)
    places = f"{os.environ.get('BLOSSOM_DATA') or '$BLOSSOM_DATA'} or {downloads}"
    raise MissingFileError(
        f"{names} is not here and could not be fetched; put it, or it with .xz, into {places}; "
        f"tried {', '.join(tried) or 'no source, as none is known'}"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _record(target: pathlib.Path, digest: str, source: Url | Package, archive: str) -> None:
    record = target.with_name(f"{target.name}.sha256")
    record.write_text(f"{digest}  {target.name}\n{archive}  {source}\n")
    print(
        f"{target.name}: no sha256 is published; recorded {digest} of this download in {record}",
        flush=True,
    )


@contextlib.contextmanager
def _open(source: Url | Package) -> Iterator[tuple[IO[bytes], str]]:
    """Yields the wanted file as a stream, and the sha256 of the download that holds it."""
    print(f"fetching {source}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(source, Package):
            download = _fetch_package(source, pathlib.Path(folder))
        else:
            download = _fetch_url(source, pathlib.Path(folder))
        digest = _digest(download)
        if source.member:
            with zipfile.ZipFile(download) as archive, _member(archive, source) as stream:
                yield stream, digest
        else:
            opener = _OPENERS.get(download.suffix, open)
            with opener(download, "rb") as stream:
                yield stream, digest


def _member(archive: zipfile.ZipFile, source: Url | Package) -> IO[bytes]:
    if source.member not in archive.namelist():
        raise UserError(f"it holds no {source.member}")
    return archive.open(source.member)


def _fetch_url(source: Url, folder: pathlib.Path) -> pathlib.Path:
    download = folder / source.url.rsplit("/", 1)[-1]
    request = urllib.request.Request(source.url, headers={"User-Agent": "blossom-jax"})
    with (
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response,
        open(download, "wb") as file,
    ):
        shutil.copyfileobj(response, file, _CHUNK)
    return download


def _fetch_package(source: Package, folder: pathlib.Path) -> pathlib.Path:
    """Downloads a wheel without its dependencies; a wheel is a zip archive and runs nothing."""
    command = [sys.executable, "-m", "pip", "download", f"--dest={folder}", *_PIP_OPTIONS]
    command.append(f"{source.name}=={source.version}")
    result = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_LIMIT_SECONDS)
    if result.returncode:
        raise UserError(f"pip: {(result.stderr.strip().splitlines() or ['failed'])[-1]}")
    return next(folder.glob("*.whl"))
