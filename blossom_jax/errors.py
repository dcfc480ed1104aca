"""The exceptions that command lines turn into one line and an exit code."""


class UserError(ValueError):
    """Reports a mistake in a flag, a config value, a data file or a working folder.

    The message is one line that names the value and the rule. Command lines print it and exit
    with code 2 (`experiments/_cli.py`).
    """


class MissingFileError(UserError):
    """Reports a file that is not at hand and cannot be fetched."""


class NonFiniteError(ArithmeticError):
    """Reports a loss or gradient that is not finite. The message names the step; exit code 1."""
