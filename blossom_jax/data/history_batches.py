"""Batches of histories to encode, every history once, several to a row, in few shapes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Int64

from blossom_jax.data.packing import plan_rows
from blossom_jax.data.ragged import ragged_arange
from blossom_jax.data.train_batches import Batch

_SHORTEST = 64  # events in the smallest group of histories, and tokens in the shortest rows


class BatchShape(NamedTuple):
    """Sizes of a batch: b rows of l tokens that the model sees, u users with s items each.

    Attributes:
      users: u.
      rows: b.
      length: l.
      seen: s.
    """

    users: int
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


class _Group(NamedTuple):
    """Histories of similar length, dealt to batches of one layout.

    Attributes:
      shape: Of each batch.
      begin: Place in the batch, counted along its rows, where the history of each user begins.
      dealt: The histories of each batch, -1 = none.
    """

    shape: BatchShape
    begin: Int64[np.ndarray, "users"]
    dealt: Int64[np.ndarray, "batches users"]


def fewest_users(batch_users: int, max_length: int, multiple_of: int = 1) -> int:
    """Returns how many users the batches of the longest histories have; no batch has fewer."""
    return _users_of_batch(batch_users, max(max_length, _SHORTEST), multiple_of)


def history_shapes(
    histories: Histories, *, max_length: int, batch_users: int, multiple_of: int = 1, gap: int = 0
) -> list[BatchShape]:
    """Returns the different shapes of what `history_batches` yields, without making any of it."""
    groups = _groups(histories.length, max_length, batch_users, multiple_of, gap)
    return [group.shape for group in groups]


def history_batches(
    histories: Histories, *, max_length: int, batch_users: int, multiple_of: int = 1, gap: int = 0
) -> Iterator[Batch]:
    """Batches histories, the shortest first, in few shapes.

    The model's input is the last `max_length` events, from position 0. Histories of up to 64 events
    make a group, and so do those of up to 256, 1,024, ... Within a group they are dealt to batches
    by length, like cards, so that all batches hold much the same lengths and one plan of their rows
    serves all.

    Args:
      histories: At least one event each.
      max_length: Events that the model sees, at most.
      batch_users: Histories in a batch of short ones, a multiple of `multiple_of`; where rows are
        longer than 64 tokens, batches hold fewer, but never more tokens.
      multiple_of: Devices that share a batch: each gets as many rows, and the users in these.
      gap: Tokens of a row that are left empty between two histories.

    Yields:
      Dicts of arrays (int32; history is int64) of b rows, and u users that stand in them:
        item_ids: [b, l], 0 = padding.
        positions: [b, l], of each event that the model sees in its history, -1 = padding.
        last: [u], place of the last event of each history, counted along the rows; b * l for
          nobody, which is behind them.
        seen: [u, s], every item of the history, however long, 0 = padding.
        history: [u], which history this is; -1 = nobody's.
    """
    for group in _groups(histories.length, max_length, batch_users, multiple_of, gap):
        for chosen in group.dealt:
            yield _history_batch(histories, chosen, group, max_length)


def _groups(
    lengths: Int[np.ndarray, "n"], max_length: int, batch_users: int, multiple_of: int, gap: int
) -> Iterator[_Group]:
    """Yields the groups that have histories, those of the shortest first."""
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    size, begin = _SHORTEST, 0
    while begin < len(order):
        end = int(np.searchsorted(lengths, size, side="right"))
        row_length = min(size, max(max_length, _SHORTEST))
        users = _users_of_batch(batch_users, row_length, multiple_of)
        if end > begin:
            tokens = np.clip(lengths[begin:end], 1, max_length)
            yield _deal(order[begin:end], tokens, users, multiple_of, row_length, gap, size)
        size, begin = 4 * size, end


def _users_of_batch(batch_users: int, row_length: int, multiple_of: int) -> int:
    users = batch_users
    while users * row_length > batch_users * _SHORTEST and users % (2 * multiple_of) == 0:
        users //= 2
    return users


def _deal(
    chosen: Int[np.ndarray, "n"],
    lengths: Int[np.ndarray, "n"],
    users: int,
    parts: int,
    row_length: int,
    gap: int,
    size: int,
) -> _Group:
    """Deals histories, in ascending order of length, to batches that each have so many parts.

    A part is what one device gets. The k-th histories of all parts are neighbours in the order, so
    they are about as long as the longest of them, for which there is room in each part.
    """
    batches = -(-len(chosen) // users)
    cards = np.full(users * batches, -1)
    cards[: len(chosen)] = chosen
    room = np.zeros(users * batches, np.int64)
    room[: len(chosen)] = lengths
    room = room.reshape(users // parts, -1).max(axis=1)
    begin, rows = _lay_out(room[room > 0], row_length, gap)
    rows = _one_of_few(rows)
    of_part = np.pad(begin, (0, len(room) - len(begin)))
    return _Group(
        BatchShape(users, rows * parts, row_length, size),
        (of_part + np.arange(parts)[:, None] * rows * row_length).ravel(),
        np.moveaxis(cards.reshape(-1, batches, parts), 0, 2).reshape(batches, users),
    )


def _lay_out(
    room: Int[np.ndarray, "n"], row_length: int, gap: int
) -> tuple[Int64[np.ndarray, "n"], int]:
    """Packs histories into rows; returns the place where each begins, and the number of rows."""
    plan = plan_rows(room + gap, row_length + gap)
    row, history = plan.windows_of(np.arange(plan.num_rows))
    taken = np.cumsum(room[history] + gap) - room[history] - gap
    begin = np.empty_like(room)
    begin[history] = row * row_length + taken - taken[plan.offsets[row]]
    return begin, plan.num_rows


def _one_of_few(number: int) -> int:
    """Rounds up, by a 16th at most, to a number whose first five binary digits say it all."""
    step = 1 << max(0, number.bit_length() - 5)
    return -(-number // step) * step


def _history_batch(
    histories: Histories, chosen: Int[np.ndarray, "users"], group: _Group, max_length: int
) -> Batch:
    """Builds the batch of some of the histories."""
    shape, end = group.shape, histories.end[chosen]
    whole = np.where(chosen >= 0, end - histories.begin[chosen], 0)
    length = np.minimum(whole, max_length)
    user, position = ragged_arange(length)
    place = group.begin[user] + position
    item_ids = np.zeros(shape.rows * shape.length, np.int32)
    item_ids[place] = histories.items[(end - length)[user] + position]
    positions = np.full_like(item_ids, -1)
    positions[place] = position
    return {
        "item_ids": item_ids.reshape(shape.rows, shape.length),
        "positions": positions.reshape(shape.rows, shape.length),
        "last": np.where(length, group.begin + length - 1, item_ids.size).astype(np.int32),
        "seen": _events_before(histories.items, end, whole, shape.seen),
        "history": chosen,
    }


def _events_before(
    items: Int[np.ndarray, "events"],
    end: Int[np.ndarray, "u"],
    length: Int[np.ndarray, "u"],
    width: int,
) -> Int32[np.ndarray, "u width"]:
    """Returns the `length` items before each index `end`, left-aligned in [u, width]."""
    column = np.arange(width)
    taken = column < length[:, None]
    event = np.where(taken, (end - length)[:, None] + column, 0)
    return np.where(taken, items[event], 0).astype(np.int32)
