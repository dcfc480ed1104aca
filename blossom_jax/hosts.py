"""What the processes of one run tell one another; with a single process there is nothing to tell.

Every process calls these functions, and in the same order: each waits for all others.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from blossom_jax.errors import UserError

T = TypeVar("T")


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order.

    Args:
      value: JSON.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]


def together(function: Callable[[], T]) -> T:
    """Calls a function that may refuse, and refuses everywhere if it does so anywhere.

    Args:
      function: Tells no other process anything.

    Raises:
      UserError: That of the first process that refused.
    """
    refusal, result = None, None
    try:
        result = function()
    except UserError as error:
        refusal = str(error)
    refusals = gather(refusal)
    for process, found in enumerate(refusals):
        if found is not None:
            where = f"process {process} of {len(refusals)}: " if len(refusals) > 1 else ""
            raise UserError(where + found)
    return result  # type: ignore[return-value]


def check_same(values: dict[str, Any]) -> None:
    """Refuses to go on where processes would each do something else.

    Args:
      values: JSON by name.

    Raises:
      UserError: In every process, with each name whose values differ, and two of these.
    """
    everyone = gather(values)
    for process, other in enumerate(everyone):
        if differing := differences(everyone[0], other, "in process 0", f"in process {process}"):
            raise UserError(
                f"the processes of this run do not agree: {differing}; start all of them with the "
                "same command, and from the same files"
            )


def differences(there: dict, here: dict, where: str, and_where: str) -> str:
    """Names every key whose values differ, with both; "" if none does."""
    return "; ".join(
        f"{key} is {there.get(key)!r} {where} and {here.get(key)!r} {and_where}"
        for key in there | here
        if there.get(key) != here.get(key)
    )
