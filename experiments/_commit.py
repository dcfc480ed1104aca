"""Which code is running. For the benchmarks of attention it needs no package besides jax."""

import functools
import pathlib
import subprocess


@functools.cache
def git_commit() -> str:
    """Returns the commit of this code, with "+" if files differ from it; "" outside a clone.

    It is read once: what is committed later is not the code that this process has loaded.
    """
    folder = pathlib.Path(__file__).parent
    try:
        commit = subprocess.check_output(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=folder,
            text=True,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.strip()
