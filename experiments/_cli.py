"""Reads command lines, and turns every mistake a user can mend into one line and exit code 2.

A command reads as

    def main(argv):
        parser = _cli.ArgumentParser(description=__doc__)
        ...

    if __name__ == "__main__":
        _cli.run(main)
"""

from __future__ import annotations  # ml_collections is imported only where a config is read

import argparse
import ast
import contextlib
import difflib
import errno
import functools
import importlib.util
import math
import operator
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from blossom_jax.errors import NonFiniteError, UserError
from configs.models import MODELS

if TYPE_CHECKING:
    import ml_collections

_FILE_ERRORS = (
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    FileExistsError,
    FileNotFoundError,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Calls `main` with the command line and exits with the code that it earned.

    Args:
      main: Takes the arguments after the program's name; returns an exit code, or None for 0.
    """
    try:
        with errors_to_exit_code():
            code = main(sys.argv[1:])
            sys.stdout.flush()
    except BrokenPipeError:  # who read what this prints has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


@contextlib.contextmanager
def errors_to_exit_code() -> Iterator[None]:
    """Prints expected errors as one line on stderr and exits; lets bugs show their traceback.

    Raises:
      SystemExit: With code 2 for a mistake in flags, config, data or sizes; with 1 for a loss
        that is not finite; with 130 for an interrupt from the keyboard.
    """
    try:
        yield
    # A NotImplementedError is an implementation asked for by name that cannot run here.
    except (UserError, NotImplementedError) as error:
        _exit(2, str(error))
    except _FILE_ERRORS as error:
        _exit(2, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _exit(2, f"{error.filename or 'a file'}: {error.strerror}")
    except NonFiniteError as error:
        _exit(1, str(error))
    except MemoryError as error:
        _exit(2, f"out of memory: {error}")
    except RuntimeError as error:  # the accelerator runtime's own type is a RuntimeError
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _exit(2, f"out of memory: {str(error).splitlines()[0]}")
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def _exit(code: int, message: str) -> None:
    print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(code)


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser that raises `UserError`, shows its description as written, and never
    guesses a shortened flag."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        raise UserError(message)


def writable(text: str) -> pathlib.Path:
    """Reads a path whose folder is there to write in, as argparse's `type`."""
    path = pathlib.Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    return path


def folder(text: str) -> str:
    """Reads the name of a folder, as argparse's `type`."""
    if not text:  # as of a shell's variable that is not set
        raise argparse.ArgumentTypeError("it names no folder")
    return text


def parse_with_config(parser: ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses flags, loads the file of `--config`, and applies `--model` and `--config.key=value`.

    Args:
      parser: A parser without `--config` and `--model`; they are added here.
      argv: Arguments after the program's name.

    Returns:
      The parsed flags, with `config` a locked ConfigDict.

    Raises:
      UserError: An unknown flag or key, a value of the wrong type, an unreadable config file.
    """
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py",
        help="config file; any value can be overridden as --config.section.name=value",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        choices=MODELS,
        help=f"sets what makes the config's model another one: {', '.join(MODELS)}",
    )
    arguments, rest = parser.parse_known_args(argv)
    arguments.config = load_config(arguments.config)
    for key, value in MODELS.get(arguments.model, {}).items():
        override(arguments.config, key, str(value))
    apply_overrides(arguments.config, rest)
    return arguments


def apply_overrides(config: ml_collections.ConfigDict, rest: Sequence[str]) -> None:
    """Sets what `--config.key=value` or `--config.key value` say.

    Args:
      config: Its values are changed.
      rest: Arguments that a parser left.

    Raises:
      UserError: An unknown argument or key, or a value of the wrong type.
    """
    for key, text in _overrides(rest):
        override(config, key, text)


def load_config(path: str) -> ml_collections.ConfigDict:
    """Returns `get_config()` of a Python file, locked; `FILE.py:text` calls `get_config(text)`."""
    import ml_collections

    path, *argument = path.split(":", 1)
    config = call_function_of_file("--config", path, "get_config", *argument)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config={path}: get_config must return a ConfigDict, {type(config)=}")
    return config.lock()


def call_function_of_file(flag: str, path: str, name: str, *arguments: str) -> Any:
    """Returns what a function of a user's Python file returns.

    Args:
      flag: That named the file; for messages.
      path: Of the file.
      name: Of the function.
      *arguments: For it.

    Raises:
      UserError: There is no such file or function, or it raises.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"{flag}={path}: there is no such file")
    spec = importlib.util.spec_from_file_location("user_file", path)
    if spec is None:
        raise UserError(f"{flag}={path}: this must be a Python file with a function {name}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise UserError(f"{flag}={path}: there is no function {name} in it")
        return getattr(module, name)(*arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a user's own file may raise
        raise UserError(f"{flag}={path}: {type(error).__name__}: {error}") from error


def _overrides(rest: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, text) of `--config.key=text` or `--config.key text`."""
    words = iter(rest)
    for word in words:
        flag, equals, text = word.partition("=")
        if not flag.startswith("--config."):
            raise UserError(f"unknown argument {word!r}; --help lists those known")
        value = text if equals else next(words, None)
        if value is None:
            raise UserError(f"{flag} needs a value: {flag}=value")
        yield flag.removeprefix("--config."), value


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets `config.key`, where key may be dotted, to `text` read as the present value's type.

    Raises:
      UserError: No such key (names the nearest one), or text of another type.
    """
    known = flatten(config)
    if key not in known:
        inside = [name for name in known if name.startswith(key + ".")]
        nearest = inside or difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        raise UserError(f"unknown config key --config.{key}; did you mean --config.{nearest[0]}?")
    wanted = type(known[key])
    try:
        value = _READERS[wanted](text)
    except (ValueError, SyntaxError, KeyError):
        raise UserError(f"--config.{key} wants {_NAMES[wanted]}, not {text!r}") from None
    *sections, name = key.split(".")
    functools.reduce(operator.getitem, sections, config)[name] = value


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Returns {"section.name": value} in the config's order."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, type(config)):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _read_float(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError(text)
    return value


def _read_tuple(text: str) -> tuple:
    value = ast.literal_eval(text)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


_READERS: dict[type, Callable[[str], object]] = {
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: int,
    float: _read_float,
    str: str,
    tuple: _read_tuple,
}
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "numbers separated by commas",
}
