"""The command that ranks without learning: its files are those of a run."""

import json
import pathlib

import numpy as np
import polars as pl
import pytest

from blossom_jax.data import from_table, interactions
from blossom_jax.errors import UserError
from experiments import baselines, evaluate, train

ROOT = pathlib.Path(__file__).resolve().parents[2]


def ring_of_items(folder):
    """Saves a log of 60 users who walk along a ring of 30 items, one a day."""
    rng = np.random.default_rng(0)
    rows = [
        (str(user), str((first + day) % 30), 86400 * day)
        for user, first in enumerate(rng.integers(30, size=60))
        for day in range(3 + user // 4)
    ]
    table = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    interactions.save(from_table(table, name="ring"), folder)
    return folder


def test_each_ranking_has_the_results_of_a_run(tmp_path, capsys, monkeypatch):
    log, workdir = ring_of_items(tmp_path / "log"), tmp_path / "out"
    flags = [f"--config={ROOT}/configs/custom.py", f"--config.data.path={log}"]
    flags += ["--config.eval.num_negatives=10", f"--workdir={workdir}"]
    baselines.main(flags)
    printed = capsys.readouterr().out
    found = {path.parent.name: json.loads(path.read_text()) for path in workdir.glob("*/*s.json")}
    assert set(found) == {"item_knn", "item_knn_last", "recent_popularity"}  # no item repeats
    for name, results in found.items():
        assert results["model"] == name and f"test of {name} after step 0" in printed
        assert results["protocol"]["test"]["users"] == 60
        assert results["test"].keys() == results["popularity"].keys()
        assert results["valid"].keys() < results["test"].keys()
    monkeypatch.setattr(baselines, "measure", None)  # what is refused is refused before it
    with pytest.raises(UserError, match="eval.num_negatives is 10 there and 11 here"):
        baselines.main([*flags, "--config.eval.num_negatives=11"])
    metric = "full/ndcg@10"
    assert found["item_knn_last"]["test"][metric] > 2 * found["item_knn"]["popularity"][metric]


def test_a_masked_model_trains_and_evaluates_through_the_commands(tmp_path, capsys):
    log, workdir = ring_of_items(tmp_path / "log"), tmp_path / "run"
    values = {
        "data.path": log,
        "data.row_length": 32,
        "model.max_length": 16,
        "model.hidden_size": 16,
        "model.inner_size": 16,
        "model.num_layers": 1,
        "train.batch_rows": 8,
        "train.learning_rate": 1e-2,
        "train.warmup_steps": 0,
        "train.num_steps": 60,
        "eval.every_steps": 60,
        "eval.batch_users": 64,
        "eval.num_negatives": 10,
    }
    flags = [f"--config={ROOT}/configs/custom.py", "--model=bert4rec", f"--workdir={workdir}"]
    train.main(flags + [f"--config.{key}={value}" for key, value in values.items()])
    assert "ring: test of bert4rec after step 60" in capsys.readouterr().out
    results = json.loads((workdir / "results.json").read_text())
    assert results["test"]["full/ndcg@10"] > results["popularity"]["full/ndcg@10"]
    assert results["step_bytes"] > 4 * results["num_params"]
    assert evaluate.evaluate(workdir, "test")["model"] == results["test"]
    # The mask behind a history takes one of the 16 places.
    assert results["protocol"]["model_sees_events"] == 15
    shown = evaluate.perturbed(workdir, "test", lengths=[1, 15])["rows"]
    assert [row["last"] for row in shown] == [1, 15]
    assert shown[1]["full/ndcg@10"] == results["test"]["full/ndcg@10"]
