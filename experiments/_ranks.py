"""ranks.npz: the rank of every test target in a run, which comparisons of models resample."""

import os
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from blossom_jax.data import Targets
from blossom_jax.errors import UserError
from blossom_jax.protocol_metrics import Ranks

_FILE = "ranks.npz"


def write(workdir: pathlib.Path, targets: Targets, ranks: Ranks) -> None:
    """Writes the rank of each user's target in each protocol; the first process does.

    Ranks come in halves, which f32 holds exactly up to 2**23; inf = a miss.

    Args:
      workdir: Folder of the run.
      targets: That were ranked.
      ranks: Of the targets, in their order.
    """
    if jax.process_index() != 0:
        return
    by_protocol = {"full": ranks.full, "full_keep": ranks.full_keep, **ranks.sampled}
    arrays: dict[str, Any] = {n: values.astype(np.float32) for n, values in by_protocol.items()}
    partial = workdir / f"{_FILE}.partial"
    with partial.open("wb") as file:  # given a name, NumPy would put .npz behind it
        np.savez_compressed(file, user=targets.users.astype(np.int32), **arrays)
    os.replace(partial, workdir / _FILE)


def read(
    workdir: pathlib.Path, protocol: str
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Returns (users, ranks) of a finished run.

    Args:
      workdir: Folder of the run.
      protocol: "full", "uni100", ...

    Raises:
      UserError: No such file or protocol, or one that cannot be read.
    """
    path = workdir / _FILE
    try:
        with np.load(path) as arrays:
            known = sorted(set(arrays) - {"user"})
            found = {name: arrays[name] for name in {"user", protocol} & {*arrays}}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read: {error}; without results.json beside it, the command that "
            "made the run tests it again"
        ) from error
    if protocol not in known:
        raise UserError(f"{path} has no ranks of {protocol!r}, only of {', '.join(known)}")
    return found["user"], found[protocol].astype(np.float64)
