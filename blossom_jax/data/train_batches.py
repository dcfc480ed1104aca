"""The endless stream of packed training batches, reached at random: batch i is a function of i."""

import numpy as np
from jaxtyping import Bool, Int, Int32

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.packing import Plan, plan_rows, shuffle
from blossom_jax.data.ragged import ragged_arange
from blossom_jax.data.windows import Windows

Batch = dict[str, np.ndarray]

_ENDLESS = 2**40  # batches; Grain wants a length


class TrainBatches:
    """A Grain source whose element is one host's share of a batch (see `TrainStream`).

    An element is a whole share and not a row, because a share is put together in one gather: per
    token that takes a tenth of the time of making rows and stacking them.
    """

    def __init__(
        self,
        interactions: Interactions,
        windows: Windows,
        *,
        row_length: int,
        batch_rows: int,
        seed: int,
        host: int,
        num_hosts: int,
        target: str,
    ):
        self.interactions = interactions
        self.windows = windows
        self.row_length = row_length
        self.batch_rows = batch_rows
        self.seed = seed
        self.host_rows = batch_rows // num_hosts
        self.first_row = host * self.host_rows
        self.target = target
        self.plan = plan_rows(windows.length, row_length)
        self.steps_per_epoch = -(-self.plan.num_rows // batch_rows)
        self._shuffled = -1, self.plan

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Batch:
        """Returns batch `index % steps_per_epoch` of epoch `index // steps_per_epoch`."""
        epoch, step = divmod(index, self.steps_per_epoch)
        begin = step * self.batch_rows + self.first_row
        rows = np.arange(begin, min(begin + self.host_rows, self.plan.num_rows))
        return self._assemble(self._plan_of(epoch), rows)

    def _plan_of(self, epoch: int) -> Plan:
        shuffled_epoch, plan = self._shuffled
        if shuffled_epoch != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            plan = shuffle(self.plan, self.windows.length, rng)
            self._shuffled = epoch, plan  # one assignment, since Grain reads from threads
        return plan

    def _assemble(self, plan: Plan, rows: Int[np.ndarray, "rows"]) -> Batch:
        """Gathers the events of some rows; where a share has more rows, those stay empty."""
        row, window = plan.windows_of(rows)
        length = self.windows.length[window]
        slot, position = ragged_arange(length)
        event = self.windows.begin[window][slot] + position
        if self.target == "masked":  # the event after a window may not be trained on
            next_item = np.zeros_like(event)
        else:
            next_item = self.interactions.items[event + 1]
        if self.target == "last":
            next_item = np.where(position == length[slot] - 1, next_item, 0)
        # Tokens come row by row and fill each row from the left: the order of a mask's elements.
        row_tokens = np.zeros(self.host_rows, np.int64)
        np.add.at(row_tokens, row, length)
        taken = np.arange(self.row_length) < row_tokens[:, None]
        return {
            "item_ids": _place(taken, self.interactions.items[event], empty=0),
            "targets": _place(taken, next_item, empty=0),
            "positions": _place(taken, position, empty=-1),
        }


def _place(
    taken: Bool[np.ndarray, "B L"], values: Int[np.ndarray, "tokens"], *, empty: int
) -> Int32[np.ndarray, "B L"]:
    """Puts values, in order, where the mask is true."""
    array = np.full(taken.shape, empty, np.int32)
    array[taken] = values
    return array
