"""Training by two processes on this machine: one is killed, the other ends, and both go on."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import polars as pl
import pytest

from blossom_jax.data import from_table, interactions
from blossom_jax.errors import UserError
from experiments import evaluate, train

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVENTS = [(str(user), str((7 * user + n) % 30)) for user in range(40) for n in range(4 + user % 12)]
CONFIG = {
    "data.row_length": 16,
    "model.attention": "dense",  # without dropout it compiles fastest
    "model.dropout": 0.0,
    "model.embedding_dropout": 0.0,
    "model.hidden_size": 16,
    "model.inner_size": 16,
    "model.num_layers": 1,
    "model.max_length": 16,
    "train.batch_rows": 8,
    "train.num_steps": 60,
    "train.warmup_steps": 0,
    "eval.every_steps": 60,
    "eval.batch_users": 64,
    "eval.num_negatives": 10,
    "checkpoint.every_steps": 10,
    "log.every_steps": 20,
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def flags(tmp_path, *more):
    log = tmp_path / "log"
    if not log.exists():
        table = pl.DataFrame(EVENTS, schema=["user", "item"], orient="row")
        interactions.save(from_table(table, name="tiny"), log)
    values = CONFIG | {"data.path": log}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return [
        f"--config={ROOT}/configs/custom.py",
        f"--workdir={tmp_path / 'run'}",
        *overrides,
        *more,
    ]


def start_two(tmp_path, *more):
    address = f"127.0.0.1:{free_port()}"
    cluster = [f"--coordinator={address}", "--num-processes=2", "--heartbeat-seconds=10"]
    # Programs as small as these run no slower unoptimised, and compile in half the time.
    quick = "--xla_backend_optimization_level=0"
    return [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.train", *flags(tmp_path, *cluster, *more)]
            + [f"--process-id={process}"],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": quick},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]


def lines_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_after_one_was_killed(tmp_path):
    processes = start_two(tmp_path)
    while not (tmp_path / "run/checkpoints/20/sha256.json").exists():
        assert [p.poll() for p in processes] == [None, None], [p.communicate() for p in processes]
        time.sleep(0.01)
    processes[1].kill()
    _, errors = processes[0].communicate(timeout=100)
    processes[1].communicate()
    assert processes[0].returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith("error: process 0 of 2 stops, as another process seems to have ended")
    assert not (tmp_path / "run/results.json").exists()

    # Each process has one device; now they split the table, and no longer the rows alone.
    first, second = start_two(tmp_path, "--config.mesh.model=2")
    printed, errors = first.communicate(timeout=600)
    silent, _ = second.communicate(timeout=100)
    assert (first.returncode, second.returncode) == (0, 0), errors
    assert "resuming after step" in errors
    assert "full/ndcg@10" in printed and "full/ndcg@10" not in silent

    lines = lines_of(tmp_path)
    assert [(line["step"], line["split"]) for line in lines] == [
        *[(20, "train"), (40, "train"), (60, "train"), (60, "valid"), (60, "test")]
    ]
    num_targets = sum(len(range(n % 12 + 4)) - 3 for n in range(40))
    assert lines[0]["targets"] == 10 * num_targets  # both processes' in ten epochs of two steps
    losses = [line["loss"] for line in lines[:3]]
    assert losses == sorted(losses, reverse=True)

    # One process, with its eight devices, finds what the two found.
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["device"] == "2 x cpu"
    measured = evaluate.evaluate(tmp_path / "run", "test")["model"]
    assert measured == pytest.approx(results["test"], rel=1e-6)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--num-processes=2"], "--coordinator, --num-processes and --process-id together"),
        (["--distributed", "--process-id=0"], "--distributed alone"),
        (
            ["--coordinator=127.0.0.1:1", "--num-processes=2", "--process-id=2"],
            r"--process-id=2 must lie in \[0, 2\)",
        ),
        (["--distributed", "--heartbeat-seconds=0"], "--heartbeat-seconds must be at least 1"),
        (["--distributed"], "the other processes were not found: .* --coordinator"),
    ],
)
def test_flags_that_join_nothing_are_refused(tmp_path, more, words):
    with pytest.raises(UserError, match=words):
        train.main(flags(tmp_path, *more))
    assert not (tmp_path / "run").exists()
