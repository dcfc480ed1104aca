"""The one exception type for mistakes that a user can mend."""


class UserError(ValueError):
    """Reports a mistake in a flag, a config value, a data file or a working folder.

    The message is one line that names the value and the rule. Command lines print it and exit
    with code 2 (`experiments/_cli.py`).
    """
