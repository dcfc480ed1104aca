"""A sweep with a grid: which trials are trained, with which seeds, and who wins."""

import json

import pytest
from test_sweep import ROWS, run_here, write_sweep
from tiny_training import flags

from blossom_jax.errors import UserError
from experiments.sweep import __main__ as sweep
from experiments.sweep import processes, runs
from experiments.sweep.definition import Sweep


def test_every_row_is_tuned_on_the_same_points():
    grid = {"train.learning_rate": (1e-3, 3e-3), "model.dropout": (0.1, 0.2, 0.5)}
    whole_grid = Sweep("blossom", "full/ndcg@10", ROWS, grid).points()
    assert len(whole_grid) == 6 and whole_grid[1] == {
        "train.learning_rate": 1e-3,
        "model.dropout": 0.2,
    }
    some = Sweep("blossom", "full/ndcg@10", ROWS, grid, trials=4).points()
    assert len(some) == 4 and all(point in whole_grid for point in some)
    assert some == Sweep("blossom", "full/ndcg@10", ROWS, grid, trials=4).points()
    assert Sweep("blossom", "full/ndcg@10", ROWS).points() == [{}]


@pytest.mark.parametrize("values", [[(0.2, 0.4, 0.3)], [(0.2, 0.5, 0.3), (0.2, 0.3, 0.1)]])
def test_the_winner_has_the_best_validation(tmp_path, values):
    grid = {"train.learning_rate": (1e-3, 3e-3, 1e-2)}
    tuned = Sweep("blossom", "full/ndcg@10", ROWS, grid, tuning_seeds=len(values))
    for seed, of_seed in zip((5, 6), values, strict=False):
        for point, value in zip(tuned.points(), of_seed, strict=True):
            assert runs.winner(tuned, tmp_path, "blossom", [5, 6, 7], "full/ndcg@10") is None
            where = runs.run_folder(tmp_path, "blossom", point, seed)
            where.mkdir(parents=True)
            (where / "results.json").write_text(json.dumps({"valid": {"full/ndcg@10": value}}))
    assert runs.winner(tuned, tmp_path, "blossom", [5, 6, 7], "full/ndcg@10") == {
        "train.learning_rate": 3e-3
    }


def tuned_sweep(tmp_path):
    return write_sweep(
        tmp_path / "s.py",
        rows=ROWS,
        grid={"train.learning_rate": (1e-3, 3e-3)},
        tuning_seeds=2,
    )


@pytest.mark.parametrize("stopped", [False, True])
def test_trials_are_processes_before_rows_are(tmp_path, log, monkeypatch, stopped):
    trained = []

    def train_trial(_, row, trial, config, seeds, workdir, *, together):
        trained.append((row, trial))
        return not stopped

    def train_row(_, row, config, seeds, workdir, *, together):
        trained.append(row)
        return True

    monkeypatch.setattr(runs, "train_trial", train_trial)
    monkeypatch.setattr(runs, "train_row", train_row)
    monkeypatch.setattr(processes, "run_all", run_here)
    arguments = [*flags(log, tmp_path / "sweep"), f"--sweep={tuned_sweep(tmp_path)}", "--seeds=2"]
    code = sweep.main([*arguments, "--jobs=2"])
    assert code == (processes.STOPPED if stopped else 0)
    trials = [(row, trial) for row in ROWS for trial in (0, 1)]
    assert trained == (trials if stopped else [*trials, *ROWS])


def test_one_process_at_a_time_tunes_a_row(tmp_path, log, monkeypatch):
    started = []
    monkeypatch.setattr(processes, "run_all", lambda commands, **_: started.extend(commands) or {})
    sweep.main([*flags(log, tmp_path / "sweep"), f"--sweep={tuned_sweep(tmp_path)}", "--seeds=2"])
    assert started == [*ROWS]


def test_a_row_is_tuned_and_its_winner_gets_the_other_seeds(tmp_path, log, monkeypatch):
    trained = []

    def train_seeds(config, workdir, row, point, seeds, together):
        rate = config.train.learning_rate
        trained.append((config.model.attention, rate, list(seeds)))
        for seed in seeds:
            folder = runs.run_folder(workdir, row, point, seed)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "results.json").write_text(json.dumps({"valid": {"full/ndcg@10": rate}}))
        return True

    monkeypatch.setattr(runs, "_train_seeds", train_seeds)
    arguments = [*flags(log, tmp_path / "sweep"), f"--sweep={tuned_sweep(tmp_path)}", "--seeds=3"]
    assert sweep.main([*arguments, "--only=dense", "--config.eval.metric=full/ndcg@10"]) == 0
    assert trained == [
        ("dense", 1e-3, [0, 1]),
        ("dense", 3e-3, [0, 1]),
        ("dense", 3e-3, [0, 1, 2]),
    ]


def test_a_trial_is_trained_with_the_tuning_seeds(tmp_path, log, monkeypatch):
    trained = []

    def train_seeds(config, workdir, row, point, seeds, together):
        trained.append((row, config.train.learning_rate, point, list(seeds), together))
        return True

    monkeypatch.setattr(runs, "_train_seeds", train_seeds)
    arguments = [*flags(log, tmp_path / "sweep"), f"--sweep={tuned_sweep(tmp_path)}"]
    assert sweep.main([*arguments, "--seeds=3", "--only=dense", "--trial=1", "--together"]) == 0
    assert trained == [("dense", 3e-3, {"train.learning_rate": 3e-3}, [0, 1], True)]
    with pytest.raises(UserError, match="--trial=2: the grid has 2 points, from 0 on"):
        sweep.main([*arguments, "--only=dense", "--trial=2"])
    with pytest.raises(UserError, match="--trial=1 needs --only=ROW"):
        sweep.main([*arguments, "--trial=1"])
    with pytest.raises(UserError, match="--seeds must be at least 2, with which .*s.py tunes"):
        sweep.main([*arguments, "--seeds=1"])
