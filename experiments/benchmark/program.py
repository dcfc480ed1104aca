"""A contender made ready to run at some sizes."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, and what is known of it before it runs.

    Attributes:
      call: Runs it on the next set of inputs; returns what can be waited for.
      temporary_bytes: What it asks for besides inputs and outputs, None where unknown.
      needed_bytes: What it holds at once on the device, likewise.
      moved_bytes: That any such program must move, see `floor`.
      exponentials: That any such program must compute, likewise.
      sets: How many sets of inputs take turns.
    """

    call: Callable[[], Any]
    temporary_bytes: int | None
    needed_bytes: int | None
    moved_bytes: int
    exponentials: float
    sets: int
