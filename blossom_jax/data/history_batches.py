"""Batches of histories to encode, every history once, in few shapes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from blossom_jax.data.train_batches import Batch

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


class Histories(NamedTuple):
    """Stretches of an array of items, one a user.

    Attributes:
      items: int32[events], 1..num_items.
      begin: int64[n], history i is items[begin[i] : end[i]].
      end: int64[n].
    """

    items: Int[np.ndarray, "events"]
    begin: Int[np.ndarray, "n"]
    end: Int[np.ndarray, "n"]

    @property
    def length(self) -> Int[np.ndarray, "n"]:
        """Events in each history."""
        return self.end - self.begin


def history_shapes(
    histories: Histories, *, max_length: int, batch_users: int, multiple_of: int = 1
) -> list[BatchShape]:
    """Returns the different shapes of what `history_batches` yields, without making any of it."""
    lengths = np.sort(histories.length)
    return [shape for shape, _, _ in _buckets(lengths, max_length, batch_users, multiple_of)]


def history_batches(
    histories: Histories, *, max_length: int, batch_users: int, multiple_of: int = 1
) -> Iterator[Batch]:
    """Batches histories, the shortest first, in few shapes.

    The model's input is the last `max_length` events, from position 0. Histories are sorted into
    buckets: their sizes double up to `max_length`, and quadruple beyond it, where only `seen`
    grows. Rows of more than 64 tokens come in smaller batches.

    Args:
      histories: At least one event each.
      max_length: Events that the model sees, at most.
      batch_users: Rows in a batch of short histories; a multiple of `multiple_of`.
      multiple_of: What the rows of every batch divide by: devices that share them.

    Yields:
      Dicts of arrays (int32; row is int64) of b rows, filled up with empty rows:
        item_ids: [b, l], left-aligned, 0 = padding.
        positions: [b, l], 0, 1, ..., -1 = padding.
        seen: [b, s], every item of the history, however long, 0 = padding.
        row: [b], which history this is; -1 in empty rows.
    """
    lengths = histories.length
    order = np.argsort(lengths, kind="stable")
    for shape, begin, end in _buckets(lengths[order], max_length, batch_users, multiple_of):
        for first in range(begin, end, shape.rows):
            present = order[first : min(first + shape.rows, end)]
            rows = np.concatenate([present, np.full(shape.rows - len(present), -1)])
            yield _history_batch(histories, rows, shape)


def _buckets(
    lengths: Int[np.ndarray, "n"], max_length: int, batch_users: int, multiple_of: int
) -> list[tuple[BatchShape, int, int]]:
    """Returns a shape for each bucket that has users, and which of the sorted lengths are in it."""
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


def _history_batch(histories: Histories, rows: Int[np.ndarray, "b"], shape: BatchShape) -> Batch:
    """Builds the batch of some of the histories; row -1 stays empty."""
    end = histories.end[rows]
    history = np.where(rows >= 0, histories.length[rows], 0)
    length = np.minimum(history, shape.length)
    column = np.arange(shape.length)
    return {
        "item_ids": _events_before(histories.items, end, length, shape.length),
        "positions": np.where(column < length[:, None], column, -1).astype(np.int32),
        "seen": _events_before(histories.items, end, history, shape.seen),
        "row": rows,
    }


def _events_before(
    items: Int[np.ndarray, "events"],
    end: Int[np.ndarray, "b"],
    length: Int[np.ndarray, "b"],
    width: int,
) -> Int32[np.ndarray, "b width"]:
    """Returns the `length` items before each index `end`, left-aligned in [b, width]."""
    column = np.arange(width)
    taken = column < length[:, None]
    event = np.where(taken, (end - length)[:, None] + column, 0)
    return np.where(taken, items[event], 0).astype(np.int32)
