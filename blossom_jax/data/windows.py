"""Cutting long histories into the windows that a model trains on."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.ragged import ragged_arange
from blossom_jax.data.split import Split
from blossom_jax.errors import UserError

TARGETS = ("all", "last", "masked")


class Windows(NamedTuple):
    """Stretches of the log, each inside one history.

    Window i has the inputs `items[begin[i] : begin[i] + length[i]]`, and the target of each input
    is the event after it.
    """

    begin: Int64[np.ndarray, "windows"]
    length: Int64[np.ndarray, "windows"]


def training_windows(
    interactions: Interactions, split: Split, max_length: int, target: str = "all"
) -> Windows:
    """Cuts every training history into windows of at most `max_length` inputs.

    With target "all", windows are aligned to the end of the history and follow one another: the
    last target of a window is the first input of the next. With "last", there is one window for
    every target, the prefix before it, cut to its last `max_length` events; the target of its last
    input alone is to be trained (`TrainStream` with the same `target`), which is how the authors'
    code trains. Either way every event of a training history but its first is a trained target
    exactly once. The two differ in what an input may see: in "all" the context of a long history
    starts anew in each window, in "last" it is always as long as `max_length` allows, at the price
    of as many tokens as the prefixes have.

    With "masked", windows are as with "all", but they have no targets: whoever trains hides events
    of them. So the last event of a training history is an input too.

    Args:
      interactions: A prepared log.
      split: Where each user's training history ends.
      max_length: Inputs in a window, at most.
      target: "all", "last" or "masked".

    Returns:
      Windows user by user, in time order. Histories of fewer than two events have none.

    Raises:
      UserError: A value is out of range, or no history has two training events.
    """
    if max_length < 1:
        raise UserError(f"model.max_length must be at least 1: {max_length=}")
    if target not in TARGETS:
        raise UserError(f"train.target must be one of {TARGETS}: {target=}")
    first = interactions.offsets[:-1]
    num_inputs = np.maximum(split.train_end - first - 1, 0)  # the last event is only a target
    if target == "masked":
        num_inputs += num_inputs > 0
    # The last window ends with the history; the others end `stride` apart before it.
    stride = 1 if target == "last" else max_length
    num_windows = -(-num_inputs // stride)
    user, k = ragged_arange(num_windows)
    end = (first + num_inputs)[user] - (num_windows[user] - 1 - k) * stride
    length = np.minimum(end - first[user], max_length)
    if not len(length):
        raise UserError(f"{interactions.name}: no history has two events to train on")
    return Windows(end - length, length)
