"""The exceptions that command lines turn into one line and an exit code."""

from collections.abc import Iterable


class UserError(ValueError):
    """Reports a mistake in a flag, a config value, a data file or a working folder.

    The message is one line that names the value and the rule. Command lines print it and exit
    with code 2 (`experiments/_cli.py`).
    """


class MissingFileError(UserError):
    """Reports a file that is not at hand and cannot be fetched."""


class NonFiniteError(ArithmeticError):
    """Reports a loss or gradient that is not finite. The message names the step; exit code 1."""


def check(holds: bool, message: str) -> None:
    """Raises UserError with the message, unless what it demands holds."""
    if not holds:
        raise UserError(message)


def check_name(key: str, name: str, known: Iterable[str]) -> None:
    """Raises UserError, with those known, where a config key has a name that is none of them."""
    known = tuple(known)
    check(name in known, f"{key} must be one of {', '.join(map(repr, known))}, got {name!r}")
