"""The loop on a toy problem: exact resumption, early stop, signals, and losses that blow up."""

import dataclasses
import itertools
import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blossom_jax import sharding
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.errors import NonFiniteError, UserError
from blossom_jax.metric_log import MetricLog, Terminal
from blossom_jax.schedule import Progress, Schedule
from blossom_jax.trainer import Trainer, on_devices

MESH = sharding.make_mesh(devices=jax.devices()[:1])
DEVICE = sharding.replicated(MESH)
SCHEDULE = Schedule(
    num_steps=20, log_every=3, evaluate_every=4, checkpoint_every=5, patience=0, metric="score"
)


class Stream:
    """Counts up from wherever its state says."""

    def __init__(self, state):
        self._next = state["next_batch"]

    def __iter__(self):
        return self

    def __next__(self):
        self._next += 1
        return {"x": np.full(4, self._next, np.float32)}

    def get_state(self):
        return {"next_batch": self._next}


@jax.jit
def train_step(state, batch):
    weight = state["params"]["weight"] * 0.9 + jnp.sum(batch["x"]) * 0.01
    return (
        {"params": {"weight": weight}, "opt_state": state["opt_state"], "step": state["step"] + 1},
        {"loss_sum": jnp.exp(-weight), "count": jnp.float32(3), "grad_norm": weight},
    )


def first_state():
    state = {"params": {"weight": 0.0}, "opt_state": {"count": 0.0}, "step": 0}
    return jax.device_put(jax.tree.map(jnp.asarray, state), DEVICE)


def run(workdir, *, schedule=SCHEDULE, step=train_step, scores=None, kill_at=None):
    """Starts or resumes a run; raises Killed before step `kill_at`."""
    evaluations = []

    def evaluate(params):
        evaluations.append(float(params["weight"]))
        return {"score": scores.pop(0) if scores else evaluations[-1], "other": 1.0}

    def killed_step(state, batch):
        if jax.device_get(batch["x"])[0] == kill_at:
            raise Killed
        return step(state, batch)

    checkpoints = Checkpoints(workdir / "checkpoints")
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=DEVICE), first_state()
    )
    restored = checkpoints.restore_latest(like)
    state, progress = first_state(), Progress("hash", {"next_batch": 0})
    if restored:
        state, progress = restored[0], Progress(**restored[1])
    log = MetricLog(workdir, progress.step)
    trainer = Trainer(
        killed_step if kill_at else step,
        evaluate,
        schedule,
        checkpoints,
        log,
        Terminal(progress.step, schedule.num_steps),
    )
    try:
        return trainer.fit(state, progress, on_devices(Stream(progress.input_state), MESH))
    finally:
        checkpoints.close()
        log.close()


class Killed(Exception):
    pass


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir)


def test_lines_and_evaluations_come_when_due(whole):
    workdir, _ = whole
    assert [line["step"] for line in lines(workdir) if line["split"] == "train"] == [
        *(3, 6, 9, 12, 15, 18, 20)
    ]
    assert [line["step"] for line in lines(workdir) if line["split"] == "valid"] == [
        *(4, 8, 12, 16, 20)
    ]


def test_the_loss_is_the_mean_over_the_steps_of_a_line(whole):
    workdir, _ = whole
    weight, losses = np.float32(0), []
    for step in range(1, 4):
        weight = np.float32(weight * 0.9 + 4 * step * 0.01)
        losses.append(np.exp(-weight))
    line = lines(workdir)[0]
    np.testing.assert_allclose(line["loss"], sum(losses) / 9, rtol=1e-6)
    np.testing.assert_allclose(line["grad_norm"], weight, rtol=1e-6)
    assert line["targets"] == 9


@pytest.mark.parametrize("kill_at", [1, 5, 6, 20])
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, kill_at):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    state, progress = run(tmp_path)
    want_state, want_progress = whole[1]
    jax.tree.map(np.testing.assert_array_equal, state, want_state)
    progress.train_seconds = want_progress.train_seconds
    assert progress == want_progress
    name = "metrics.jsonl"
    assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


def test_a_finished_run_takes_no_further_step(whole):
    def step(state, batch):
        raise AssertionError("trained on")

    assert run(whole[0], step=step)[1].step == 20


def test_patience_stops_and_resuming_does_not_go_on(tmp_path):
    schedule = Schedule(100, 10, 2, 0, patience=2, metric="score")
    _, progress = run(tmp_path, schedule=schedule, scores=[1.0, 3.0, 2.0, 3.0])
    assert (progress.step, progress.best_step, progress.stale_evaluations) == (8, 4, 2)
    assert progress.best_metrics == {"score": 3.0, "other": 1.0}
    assert run(tmp_path, schedule=schedule)[1].step == 8


def test_patience_begins_after_the_warm_up(tmp_path):
    schedule = Schedule(100, 10, 2, 0, patience=2, metric="score", warmup=6)
    _, progress = run(tmp_path, schedule=schedule, scores=[3.0, 2.0, 2.0, 1.0, 1.0])
    assert (progress.step, progress.best_step, progress.stale_evaluations) == (10, 2, 2)


def test_it_stops_where_the_metric_reaches_a_value_and_resuming_does_not_go_on(tmp_path):
    schedule = Schedule(100, 10, 2, 0, patience=0, metric="score", stop_at=3.0)
    _, progress = run(tmp_path, schedule=schedule, scores=[1.0, 2.5, 3.0, 4.0])
    assert (progress.step, progress.best_step) == (6, 6)
    assert run(tmp_path, schedule=schedule)[1].step == 6


@pytest.mark.parametrize("bad", ["loss_sum", "grad_norm"])
def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path, bad):
    def step(state, batch):
        state, metrics = train_step(state, batch)
        poison = jnp.where(state["step"] == 13, jnp.nan, 0.0)
        return state, metrics | {bad: metrics[bad] + poison}

    with pytest.raises(NonFiniteError, match="at step 13"):
        run(tmp_path, step=jax.jit(step))
    assert run(tmp_path)[1].step == 20


def kill_at(batch_number, *signals):
    """Returns a step that the process gets signals in the middle of."""

    def step(state, batch):
        if jax.device_get(batch["x"])[0] == batch_number:
            for number in signals:
                os.kill(os.getpid(), number)
        return train_step(state, batch)

    return step


def assert_goes_on(whole, workdir):
    state, _ = run(workdir)
    jax.tree.map(np.testing.assert_array_equal, state, whole[1][0])
    name = "metrics.jsonl"
    assert (workdir / name).read_bytes() == (whole[0] / name).read_bytes()


def test_sigterm_finishes_the_step_and_saves(whole, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    _, progress = run(tmp_path, step=kill_at(7, signal.SIGTERM))
    assert progress.step == 7
    assert signal.getsignal(signal.SIGTERM) is before
    assert_goes_on(whole, tmp_path)


def test_a_sigterm_in_the_last_evaluation_is_passed_on_when_all_is_saved(tmp_path, monkeypatch):
    saved, received = tmp_path / "checkpoints" / "4" / "sha256.json", []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(saved.exists()))
    monkeypatch.setattr(Trainer, "_evaluate", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    schedule = dataclasses.replace(SCHEDULE, num_steps=4)
    try:
        run(tmp_path, schedule=schedule)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [True]


def test_ctrl_c_finishes_the_step_and_saves(whole, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7; run the same command"):
        run(tmp_path, step=kill_at(7, signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert_goes_on(whole, tmp_path)


def test_a_second_ctrl_c_does_not_wait(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt) as interrupt:
        run(tmp_path, step=kill_at(7, signal.SIGINT, signal.SIGINT))
    assert not str(interrupt.value)
    assert_goes_on(whole, tmp_path)  # from an earlier checkpoint


def test_of_several_processes_all_stop_after_the_step_that_jax_finds(tmp_path, monkeypatch):
    # Only the loop believes it: there is no second process to meet at a checkpoint.
    several = types.SimpleNamespace(**vars(jax) | {"process_count": lambda: 2})
    monkeypatch.setattr("blossom_jax.trainer.jax", several)
    found = "blossom_jax.trainer.multihost_utils.reached_preemption_sync_point"
    monkeypatch.setattr(found, lambda step: step == 7)
    _, progress = run(tmp_path)
    assert progress.step == 7


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("num_steps", "train.num_steps"),
        ("log_every", "log.every_steps"),
        ("evaluate_every", "eval.every_steps"),
    ],
)
def test_a_schedule_without_steps_is_refused(name, key):
    values = {"num_steps": 1, "log_every": 1, "evaluate_every": 1}
    with pytest.raises(UserError, match=key):
        Schedule(**values | {name: 0}, checkpoint_every=0, patience=0, metric="score")


def test_batches_come_in_order_each_with_the_state_after_it():
    batches = list(itertools.islice(on_devices(Stream({"next_batch": 5}), MESH), 3))
    assert [int(batch["x"][0]) for batch, _ in batches] == [6, 7, 8]
    assert [state["next_batch"] for _, state in batches] == [6, 7, 8]


def test_an_implicit_transfer_in_the_step_is_an_error(tmp_path):
    def step(state, batch):
        return train_step(state, {"x": np.ones(4, np.float32)})

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(tmp_path, step=step)
