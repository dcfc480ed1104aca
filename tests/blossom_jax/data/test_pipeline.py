"""The training stream: every target once an epoch, the same batches however they are made."""

import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import pytest
from toy_log import toy_log, trained_events

from blossom_jax.data.interactions import load, save
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.data.split import leave_one_out
from blossom_jax.data.train_batches import TrainBatches
from blossom_jax.data.windows import training_windows
from blossom_jax.errors import UserError

LOG = toy_log([1, 2, 3, 30, 7, 4, 18, 5, 5, 9, 12, 6, 4, 22, 11])
SPLIT = leave_one_out(LOG)


def stream(*, target="all", log=LOG, **options):
    options = {"row_length": 16, "batch_rows": 4, "seed": 0, **options}
    windows = training_windows(log, SPLIT, 8, target)
    return TrainStream(log, windows, target=target, **options)


def take(batches, n):
    return list(itertools.islice(batches, n))


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("target", ["all", "last"])
def test_every_target_once_an_epoch(target):
    batches = stream(target=target)
    trained = [event + 1 for event in trained_events(LOG, SPLIT)]  # event i has item i + 1
    for _ in range(3):
        epoch = np.stack([b["targets"] for b in take(batches, batches.steps_per_epoch)])
        assert sorted(epoch[epoch > 0]) == trained


def test_masked_has_every_trained_event_once_and_no_targets():
    batches = stream(target="masked")
    begins = LOG.offsets[:-1]
    events = [np.arange(a, b) for a, b in zip(begins, SPLIT.train_end, strict=True) if b - a > 1]
    epoch = take(batches, batches.steps_per_epoch)
    items = np.stack([batch["item_ids"] for batch in epoch])
    assert sorted(items[items > 0]) == (np.concatenate(events) + 1).tolist()
    assert not any(batch["targets"].any() for batch in epoch)


@pytest.mark.parametrize("target", ["all", "last"])
def test_tokens_are_events_in_order_with_positions_from_0(target):
    batches = stream(target=target)
    for batch in take(batches, batches.steps_per_epoch):
        items, targets, positions = batch["item_ids"], batch["targets"], batch["positions"]
        assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
        assert items.shape == targets.shape == positions.shape == (4, 16)
        assert ((items > 0) == (positions >= 0)).all()
        begins = np.diff(positions, axis=1, prepend=-1) != 1
        assert (positions[begins & (positions >= 0)] == 0).all()
        assert (np.diff(items, axis=1, prepend=0)[~begins & (positions > 0)] == 1).all()
        assert (targets == items + 1)[targets > 0].all()
        ends = (positions >= 0) & (np.diff(positions, axis=1, append=-1) != 1)
        expected = positions >= 0 if target == "all" else ends
        np.testing.assert_array_equal(targets > 0, expected)


def test_epochs_have_the_same_size_and_another_order():
    batches = stream()
    steps = batches.steps_per_epoch
    assert steps == -(-batches.rows_per_epoch // 4)
    epochs = [np.concatenate([b["item_ids"] for b in take(batches, steps)]) for _ in range(3)]
    used = [(epoch > 0).any(axis=1).sum() for epoch in epochs]
    assert used == [batches.rows_per_epoch] * 3
    assert (epochs[0] > 0).sum() / (used[0] * 16) == batches.fill
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_the_seed_decides_the_order():
    assert_same(take(stream(seed=3), 5), take(stream(seed=3), 5))
    same = [
        np.array_equal(a["item_ids"], b["item_ids"])
        for a, b in zip(take(stream(seed=3), 5), take(stream(seed=4), 5), strict=True)
    ]
    assert not all(same)


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_shares_of_the_hosts_put_together_are_the_batch(num_hosts):
    shares = [take(stream(host=h, num_hosts=num_hosts), 7) for h in range(num_hosts)]
    whole = [
        {name: np.concatenate([share[name] for share in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(whole, take(stream(), 7))


def test_a_state_continues_across_epochs():
    batches = stream()
    ahead = take(stream(), 12)
    for begin in (0, 1, batches.steps_per_epoch, 9):
        batches.set_state({"next_batch": begin})
        assert_same(take(batches, 3), ahead[begin : begin + 3])
        assert batches.get_state() == {"next_batch": begin + 3}


def test_workers_make_the_same_stream_and_exchange_states(tmp_path):
    save(LOG, tmp_path / "log")
    alone = take(stream(), 14)
    with stream(log=load(tmp_path / "log"), num_workers=2) as batches:
        assert_same(take(batches, 5), alone[:5])
        state = batches.get_state()
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:  # a signal to the whole group is not theirs to answer
            os.kill(worker.pid, signal.SIGTERM)
            os.kill(worker.pid, signal.SIGINT)
        assert_same(take(batches, 4), alone[5:9])
    assert not any(worker.is_alive() for worker in workers)
    assert not multiprocessing.active_children()

    single = stream()
    single.set_state(state)
    assert_same(take(single, 3), alone[5:8])
    with stream(num_workers=1) as batches:
        batches.set_state(single.get_state())
        assert_same(take(batches, 3), alone[8:11])


PARENT = """
import multiprocessing, sys, time
import numpy as np
from blossom_jax.data.interactions import load
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.data.windows import Windows

windows = Windows(np.array([0, 10, 20]), np.array([5, 5, 5]))
stream = TrainStream(
    load(sys.argv[1]), windows, row_length=8, batch_rows=2, seed=0, num_workers=2
)
next(stream)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


def is_alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie has ended; in a container nobody may be there to reap it


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_parent_leaves_no_workers(tmp_path):
    save(LOG, tmp_path / "log")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path / "log"], stdout=subprocess.PIPE, text=True
    )
    with parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(map(is_alive, workers))
        parent.kill()
    deadline = time.monotonic() + 5
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def test_a_loaded_log_is_sent_to_workers_as_its_path(tmp_path):
    log = toy_log([30_000])
    save(log, tmp_path / "log")
    log = load(tmp_path / "log")
    windows = training_windows(log, leave_one_out(log), 200)
    batches = TrainBatches(
        log, windows, row_length=256, batch_rows=4, seed=0, host=0, num_hosts=1, target="all"
    )
    sent = cloudpickle.dumps(batches)
    assert len(sent) < log.items.nbytes / 4
    assert_same([cloudpickle.loads(sent)[5]], [batches[5]])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="train.batch_rows=4, num_hosts=3"):
        stream(num_hosts=3)
    with pytest.raises(UserError, match="num_workers=-1"):
        stream(num_workers=-1)
    with pytest.raises(UserError, match="data.row_length=7"):
        stream(row_length=7)
