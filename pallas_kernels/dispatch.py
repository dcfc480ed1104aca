"""Chooses which implementation of an op runs."""

from collections.abc import Callable, Mapping

NAMES = ("reference", "xla", "triton", "triton_interpret")


def choose(op: str, implementation: str | None, available: Mapping[str, Callable]) -> Callable:
    """Returns the function that serves `op`.

    Args:
      op: the op's name, for the message.
      implementation: one of `NAMES`, or None for the fastest that runs on the local devices.
      available: implementations of this op by name.

    Raises:
      ValueError: `implementation` is no name at all.
      NotImplementedError: the name is known but this op has no such implementation.
    """
    if implementation is None:
        return available["xla"]
    if implementation not in NAMES:
        raise ValueError(f"{implementation=} must be None or one of {', '.join(NAMES)}")
    if implementation not in available:
        raise NotImplementedError(
            f"{op} has no {implementation=} in this version; it has {', '.join(available)}"
        )
    return available[implementation]
