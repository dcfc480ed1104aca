"""Training batches through Grain: any number of workers, an index as state."""

import multiprocessing
import os
import signal
import threading

import grain
import numpy as np
from absl import flags

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.train_batches import Batch, TrainBatches
from blossom_jax.data.windows import Windows
from blossom_jax.errors import UserError


class TrainStream:
    """Endless packed training batches of one host, with an index as state.

    Rows are planned once, from the lengths of the windows. An epoch exchanges windows of equal
    length and puts the rows in another order, both drawn from (seed, epoch). So the number of
    steps in an epoch is constant, and batch i is the same whatever the number of workers; the
    hosts' shares, put together in order, are the batch that a single host would see.

    Each batch is a dict of int32 arrays of shape [batch_rows / num_hosts, row_length]:
    `item_ids`, 0 = padding; `targets`, the item to predict at each token, 0 = none; `positions` of
    the tokens in their window, from 0, -1 = padding. The last batch of an epoch is filled up with
    empty rows.

    With workers, close the stream after use, or use it as a context manager.
    """

    def __init__(
        self,
        interactions: Interactions,
        windows: Windows,
        *,
        row_length: int,
        batch_rows: int,
        seed: int,
        num_workers: int = 0,
        host: int = 0,
        num_hosts: int = 1,
        target: str = "all",
    ):
        """Plans the rows; workers start with the first batch that is asked for.

        Args:
          interactions: A prepared log. One that was loaded from a folder is sent to the workers as
            its path.
          windows: From `training_windows`, with the same `target`.
          row_length: Tokens in a row, at least the longest window.
          batch_rows: Rows in a step over all hosts.
          seed: Of the order.
          num_workers: Processes that prepare batches; 0 = a thread of this one.
          host: Number of this host.
          num_hosts: Hosts that share each batch.
          target: "all" inputs have a target, or only the "last" of each window, or, with "masked",
            none.

        Raises:
          UserError: `batch_rows` does not divide by `num_hosts`, or a window is longer than a row.
        """
        if batch_rows < 1 or batch_rows % num_hosts:
            raise UserError(
                "train.batch_rows must be a positive multiple of the number of hosts: "
                f"train.batch_rows={batch_rows}, {num_hosts=}"
            )
        if num_workers < 0:
            raise UserError(f"data.num_workers must not be negative: {num_workers=}")
        self._batches = TrainBatches(
            interactions,
            windows,
            row_length=row_length,
            batch_rows=batch_rows,
            seed=seed,
            host=host,
            num_hosts=num_hosts,
            target=target,
        )
        self._num_workers = num_workers
        self._next_batch = 0
        self._iterator: grain.DatasetIterator | None = None

    @property
    def rows_per_epoch(self) -> int:
        """Planned rows, over all hosts."""
        return self._batches.plan.num_rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the same in every epoch."""
        return self._batches.steps_per_epoch

    @property
    def fill(self) -> float:
        """Share of the planned rows' tokens that hold an event."""
        tokens = self.rows_per_epoch * self._batches.row_length
        return int(self._batches.windows.length.sum()) / tokens

    def get_state(self) -> dict[str, int]:
        """Returns the number of the next batch; workers and hosts have no part in it."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues from a state of any stream over the same windows, row length, batch, seed."""
        self.close()
        self._next_batch = state["next_batch"]

    def __iter__(self) -> "TrainStream":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        # Copied, since Grain hands out memory that it shares with the worker and unmaps later.
        batch = {name: np.array(array) for name, array in next(self._iterator).items()}
        self._next_batch += 1
        return batch

    def close(self) -> None:
        """Ends the workers and waits for them. The next batch that is asked for starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "TrainStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _dataset(self) -> grain.IterDataset:
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags; our commands have none to parse
        rest = grain.MapDataset.source(self._batches)[self._next_batch :]
        read_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        workers = grain.MultiprocessingOptions(self._num_workers, per_worker_buffer_size=2)
        return rest.to_iter_dataset(read_ahead).mp_prefetch(workers, _obey_parent)


def _obey_parent(worker: int, num_workers: int) -> None:
    """Makes this worker end when its parent is gone, even by kill -9, and not before.

    It watches the parent process. Linux's PR_SET_PDEATHSIG would watch the thread that started the
    worker, and Grain starts workers from threads that end. A signal sent to the whole process
    group is the parent's to answer: it may still want batches, and it closes its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
