"""Runs trained together against the same runs trained alone."""

import contextlib
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train_step import CONFIG, NUM_ITEMS, adamw
from test_trainer import DEVICE, MESH, Stream, first_state, lines, train_step

from blossom_jax.checkpoint import Checkpoints
from blossom_jax.errors import NonFiniteError
from blossom_jax.losses import LossConfig, make_loss
from blossom_jax.metric_log import MetricLog, Terminal
from blossom_jax.model import model_maker
from blossom_jax.schedule import Progress, Schedule
from blossom_jax.together import fit_together, vmap_step
from blossom_jax.train_step import abstract_params, abstract_state, init_state, make_train_step
from blossom_jax.trainer import Trainer, on_devices

SCHEDULE = Schedule(
    num_steps=20, log_every=3, evaluate_every=4, checkpoint_every=5, patience=2, metric="score"
)
BEGINS = (0, 7, 3)  # of each run's stream: its own order of data


def falls_after(weight):
    """Makes the score of validation best at another time in each run."""
    return lambda params: {"score": -abs(float(params["weight"]) - weight)}


@contextlib.contextmanager
def opened(folder, k):
    """Yields (trainer, state, progress, batches) of run k, wherever it stands."""
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=DEVICE), first_state()
    )
    restored = checkpoints.restore_latest(like)
    state, progress = first_state(), Progress("hash", {"next_batch": BEGINS[k]})
    if restored:
        state, progress = restored[0], Progress(**restored[1])
    log = MetricLog(folder, progress.step)
    evaluate = falls_after(0.5 * k + 0.4)
    trainer = Trainer(train_step, evaluate, SCHEDULE, checkpoints, log, Terminal(0, 20))
    batches = on_devices(Stream(progress.input_state), MESH)
    with contextlib.closing(checkpoints), contextlib.closing(log):
        yield trainer, state, progress, batches


def fit_all(folder, step):
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(opened(folder / str(k), k)) for k in range(3)]
        return fit_together(step, *map(list, zip(*runs, strict=True))), [run[2] for run in runs]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("alone"), []
    for k in range(3):
        with opened(folder / str(k), k) as (trainer, *rest):
            found.append(trainer.fit(*rest))
    return folder, *zip(*found, strict=True)


def assert_as_alone(folder, states, progresses, alone):
    alone_folder, alone_states, alone_progresses = alone
    for k in range(3):
        np.testing.assert_allclose(
            states[k]["params"]["weight"], alone_states[k]["params"]["weight"], rtol=1e-6
        )
        found, expected = progresses[k], alone_progresses[k]
        for name in ("step", "best_step", "stale_evaluations", "input_state"):
            assert getattr(found, name) == getattr(expected, name)
        for line, wanted in zip(lines(folder / str(k)), lines(alone_folder / str(k)), strict=True):
            assert line.pop("split") == wanted.pop("split")
            assert line == pytest.approx(wanted, rel=1e-5)


def stacked_step():
    vmapped = jax.jit(jax.vmap(train_step))
    return lambda state, batch: vmapped(state, batch)


def test_each_run_has_its_own_data_best_step_and_end(alone, tmp_path):
    states, progresses = fit_all(tmp_path, stacked_step())
    assert_as_alone(tmp_path, states, progresses, alone)
    assert len({progress.step for progress in progresses}) > 1
    assert len({progress.best_step for progress in progresses}) > 1


def test_stopped_and_resumed_from_different_steps(alone, tmp_path):
    with opened(tmp_path / "1", 1) as (trainer, *rest):
        trainer.fit(*rest)  # ended before the others begin

    def killed(state, batch):
        if calls.append(0) or len(calls) == 7:
            raise RuntimeError("killed")
        return step(state, batch)

    step, calls = stacked_step(), []
    with pytest.raises(RuntimeError, match="killed"):
        fit_all(tmp_path, killed)
    states, progresses = fit_all(tmp_path, step)
    assert_as_alone(tmp_path, states, progresses, alone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(alone, tmp_path, number):
    def signalled(state, batch):
        if calls.append(0) or len(calls) == 2:  # after which nothing would be reported
            os.kill(os.getpid(), number)
        return step(state, batch)

    step, calls = stacked_step(), []
    with contextlib.ExitStack() as stack:
        if number == signal.SIGINT:
            message = "stopped after step 2; run the same command"
            stack.enter_context(pytest.raises(KeyboardInterrupt, match=message))
        fit_all(tmp_path, signalled)
    assert len(calls) == 2
    states, progresses = fit_all(tmp_path, step)
    assert_as_alone(tmp_path, states, progresses, alone)


def test_a_sigterm_in_the_last_step_is_passed_on_when_all_is_saved(alone, tmp_path):
    longest, received, calls = max(progress.step for progress in alone[2]), [], []

    def signalled(state, batch):
        if calls.append(0) or len(calls) == longest:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch)

    def passed_on(*_):
        sealed = [tmp_path / str(k) / "checkpoints" / str(p.step) / "sha256.json" for k, p in ended]
        received.append(all(path.exists() for path in sealed))

    ended, step = [*enumerate(alone[2])], stacked_step()
    before = signal.signal(signal.SIGTERM, passed_on)
    try:
        fit_all(tmp_path, signalled)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [True]


def test_a_loss_of_one_run_that_is_not_finite_stops_all(tmp_path):
    def poisoned(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | {"loss_sum": metrics["loss_sum"].at[1].set(jnp.nan)}

    step = stacked_step()
    with pytest.raises(NonFiniteError, match="at step 1"):
        fit_all(tmp_path, poisoned)


def test_ten_steps_of_the_model_equal_those_one_by_one():
    optimizer = adamw(warmup_steps=3)
    makers = [model_maker(CONFIG, NUM_ITEMS, seed) for seed in (3, 8)]
    graphdef, _ = abstract_params(makers[0], MESH)
    like = abstract_state(makers[0], optimizer, MESH)
    loss = make_loss(LossConfig(), num_items=NUM_ITEMS, mesh=MESH)
    step = make_train_step(graphdef, optimizer, MESH, like, loss)

    rng = np.random.default_rng(0)
    shape = 10, 2, 4, 24
    items, targets = rng.integers(1, NUM_ITEMS + 1, (2, *shape)).astype(np.int32)
    positions = np.broadcast_to(np.tile(np.arange(12, dtype=np.int32), 2), shape)
    batches = {"item_ids": items, "targets": targets, "positions": positions}
    seeds = np.array([3, 8], np.uint32)
    states = [init_state(make, optimizer, like) for make in makers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def batch(n, *k):
        return {name: values[(n, *k)] for name, values in batches.items()}

    # It takes half the time to compile, and runs as fast.
    options = {"xla_backend_optimization_level": 0}
    one = step.lower(states[0], batch(0, 0), seeds[0]).compile(options)
    both = vmap_step(step).lower(stacked, batch(0), seeds, None).compile(options)
    for n in range(10):
        pairs = [one(state, batch(n, k), seeds[k]) for k, state in enumerate(states)]
        states = [state for state, _ in pairs]
        stacked, metrics = both(stacked, batch(n), seeds, None)
    for k, (state, own_metrics) in enumerate(pairs):
        found = jax.tree.leaves((stacked["params"], metrics))
        expected = jax.tree.leaves((state["params"], own_metrics))
        for together, alone in zip(found, expected, strict=True):
            error = np.linalg.norm(together[k] - alone)
            assert error <= 1e-5 * np.linalg.norm(alone)
