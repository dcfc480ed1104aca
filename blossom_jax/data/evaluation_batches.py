"""Evaluation batches: every user once, in few shapes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.split import Targets
from blossom_jax.data.train_batches import Batch
from blossom_jax.errors import UserError

_SHORTEST = 16  # events in the smallest bucket of histories
_FULL_BATCH_LENGTH = 64  # tokens in a row, beyond which batches have fewer rows


class BatchShape(NamedTuple):
    """Sizes of a batch: b rows, l tokens that the model sees, s items of the history.

    Attributes:
      rows: b.
      length: l.
      seen: s.
    """

    rows: int
    length: int
    seen: int


def evaluation_shapes(
    interactions: Interactions,
    targets: Targets,
    *,
    max_length: int,
    batch_users: int,
    multiple_of: int = 1,
) -> list[BatchShape]:
    """Returns the different shapes of what `evaluation_batches` yields, without making any of it.

    Args:
      interactions: As there, and so on.
      targets: Likewise.
      max_length: Likewise.
      batch_users: Likewise.
      multiple_of: Likewise.

    Raises:
      UserError: `batch_users` does not divide by `multiple_of`.
    """
    lengths = np.sort(_history_lengths(interactions, targets))
    return [shape for shape, _, _ in _buckets(lengths, max_length, batch_users, multiple_of)]


def evaluation_batches(
    interactions: Interactions,
    targets: Targets,
    *,
    max_length: int,
    batch_users: int,
    multiple_of: int = 1,
) -> Iterator[Batch]:
    """Batches the users to evaluate, shortest histories first, in few shapes.

    The model's input is the last `max_length` events before the target, from position 0. Histories
    are sorted into buckets: their sizes double up to `max_length`, and quadruple beyond it, where
    only `seen` grows. Rows of more than 64 tokens come in smaller batches.

    Args:
      interactions: A prepared log.
      targets: The users and their targets.
      max_length: Events that the model sees, at most.
      batch_users: Rows in a batch of short histories.
      multiple_of: What the rows of every batch divide by: devices that share them.

    Yields:
      Dicts of arrays (int32; row is int64) of b rows, filled up with empty rows:
        item_ids: [b, l], left-aligned, 0 = padding.
        positions: [b, l], 0, 1, ..., -1 = padding.
        last: [b], column of the last event.
        target: [b], the item to rank; 0 in empty rows.
        seen: [b, s], every item of the history before the target, however long, 0 = padding.
        row: [b], which of `targets` this is; -1 in empty rows.

    Raises:
      UserError: `batch_users` does not divide by `multiple_of`.
    """
    lengths = _history_lengths(interactions, targets)
    order = np.argsort(lengths, kind="stable")
    for shape, begin, end in _buckets(lengths[order], max_length, batch_users, multiple_of):
        for first in range(begin, end, shape.rows):
            present = order[first : min(first + shape.rows, end)]
            rows = np.concatenate([present, np.full(shape.rows - len(present), -1)])
            yield _evaluation_batch(interactions, targets, rows, shape)


def _history_lengths(interactions: Interactions, targets: Targets) -> Int[np.ndarray, "n"]:
    return targets.target - interactions.offsets[targets.users]


def _buckets(
    lengths: Int[np.ndarray, "n"], max_length: int, batch_users: int, multiple_of: int
) -> list[tuple[BatchShape, int, int]]:
    """Returns a shape for each bucket that has users, and which of the sorted lengths are in it."""
    if batch_users < 1 or batch_users % multiple_of:
        raise UserError(
            "eval.batch_users must be a positive multiple of the devices that share it: "
            f"eval.batch_users={batch_users}, devices={multiple_of}"
        )
    sizes = _bucket_sizes(int(lengths[-1]) if len(lengths) else 0, max_length)
    bounds = [0, *np.searchsorted(lengths, sizes, side="right").tolist()]
    buckets = []
    for size, begin, end in zip(sizes, bounds[:-1], bounds[1:], strict=True):
        length = min(size, max_length)
        rows = _rows_of_batch(batch_users, length, multiple_of)
        if end > begin:
            buckets.append((BatchShape(rows, length, size), begin, end))
    return buckets


def _bucket_sizes(longest: int, max_length: int) -> list[int]:
    sizes = [_SHORTEST]
    while sizes[-1] < longest:
        sizes.append(sizes[-1] * (2 if sizes[-1] < max_length else 4))
    return sizes


def _rows_of_batch(batch_users: int, length: int, multiple_of: int) -> int:
    rows = batch_users
    while rows * length > batch_users * _FULL_BATCH_LENGTH and rows % (2 * multiple_of) == 0:
        rows //= 2
    return rows


def _evaluation_batch(
    interactions: Interactions,
    targets: Targets,
    rows: Int[np.ndarray, "b"],
    shape: BatchShape,
) -> Batch:
    """Builds the batch of some of the targets; row -1 stays empty."""
    present = rows >= 0
    end = targets.target[rows]
    history = np.where(present, end - interactions.offsets[targets.users[rows]], 0)
    length = np.minimum(history, shape.length)
    column = np.arange(shape.length)
    return {
        "item_ids": _events_before(interactions, end, length, shape.length),
        "positions": np.where(column < length[:, None], column, -1).astype(np.int32),
        "last": np.maximum(length - 1, 0).astype(np.int32),
        "target": np.where(present, interactions.items[end], 0).astype(np.int32),
        "seen": _events_before(interactions, end, history, shape.seen),
        "row": rows,
    }


def _events_before(
    interactions: Interactions, end: Int[np.ndarray, "b"], length: Int[np.ndarray, "b"], width: int
) -> Int32[np.ndarray, "b width"]:
    """Returns the `length` items before each index `end`, left-aligned in [b, width]."""
    column = np.arange(width)
    taken = column < length[:, None]
    event = np.where(taken, (end - length)[:, None] + column, 0)
    return np.where(taken, interactions.items[event], 0).astype(np.int32)
