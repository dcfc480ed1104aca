"""The sweep: its file, its processes, what it compares, and the report on it."""

import contextlib
import functools
import io
import json
import re
import sys

import jax
import numpy as np
import pytest
from tiny_training import ROOT, flags

from blossom_jax import sharding
from blossom_jax.data.split import Targets
from blossom_jax.errors import UserError
from blossom_jax.model import ModelConfig
from blossom_jax.protocol_metrics import Ranks
from experiments import _cli, _ranks, _results
from experiments.report import __main__ as report
from experiments.sweep import __main__ as sweep
from experiments.sweep import comparison, folder, processes
from experiments.sweep.definition import load_sweep, with_values
from experiments.sweep.runs import Run

SWEEPS = [p for p in sorted((ROOT / "configs/sweeps").glob("*.py")) if p.stem != "__init__"]
ROWS = {"blossom": {}, "dense": {"model.attention": "dense"}}


def write_sweep(path, **changes):
    values = {"reference": "blossom", "metric": "full/ndcg@10", "rows": ROWS} | changes
    path.write_text(f"def get_sweep():\n    return {values!r}\n")
    return path


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_the_rows_of_a_shipped_sweep_fit_the_config_of_its_command(path):
    command = rf"--config=(configs/\w+\.py)[\s\\]+--sweep=configs/sweeps/{path.name}\b"
    config = _cli.load_config(str(ROOT / re.search(command, path.read_text())[1]))
    before, found = config.to_json(), load_sweep(str(path))
    for changes in found.rows.values():
        for point in found.points():
            changed = with_values(config, changes | point)
            assert changed.is_locked
            ModelConfig(**changed.model)
    assert config.to_json() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "sasrec"}, "'sasrec' is none of the rows"),
        ({"rows": ROWS | {"a/b": {}}}, "row 'a/b' must be made of"),
        ({"grid": {"model.attention": ("dense",)}}, "row 'dense' sets model.attention, which the"),
        ({"grid": {"seed": ()}}, r"grid\['seed'\] has no value"),
        ({"metric": "full/coverage@10"}, "metric='full/coverage@10' must be recall@k, ndcg@k"),
        ({"trials": -1}, "trials must not be negative"),
        ({"tuning_seeds": 0}, "tuning_seeds must be at least 1, got 0"),
        ({"columns": 3}, "get_sweep must return a dict with"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_sweep(str(write_sweep(tmp_path / "s.py", **changes)))


def test_a_row_that_sets_no_key_is_refused_before_anything_is_written(tmp_path, log):
    path = write_sweep(tmp_path / "s.py", rows=ROWS | {"odd": {"model.atention": "dense"}})
    with pytest.raises(UserError, match="did you mean --config.model.attention"):
        sweep.main([*flags(log, tmp_path / "sweep"), f"--sweep={path}"])
    assert not (tmp_path / "sweep").exists()


def runs_of(tmp_path, row, ranks, users=None):
    """Makes the folders of finished runs with these ranks, one a seed."""
    found = []
    for seed, full in enumerate(ranks):
        workdir = tmp_path / row / str(seed)
        workdir.mkdir(parents=True)
        users = np.arange(len(full)) if users is None else users
        sampled = {"uni10": full}
        _ranks.write(workdir, Targets(users, users), Ranks(full, full, sampled, 99, 10, users))
        recall = float(np.mean(full <= 10))
        found.append(
            Run(
                row,
                {},
                workdir,
                {
                    "seed": seed,
                    "test": {"full/recall@10": recall},
                    "train_seconds": 12.0,
                    "trained_together": 2,
                    "num_params": 5,
                },
            )
        )
    return found


def test_ranks_are_saved_as_they_are(tmp_path):
    ranks = np.array([1, 2.5, np.inf, 12345.5])
    (only,) = runs_of(tmp_path, "a", [ranks])
    users, found = _ranks.read(only.folder, "uni10")
    np.testing.assert_array_equal(users, range(4))
    np.testing.assert_array_equal(found, ranks)
    with pytest.raises(UserError, match="has no ranks of 'pop10'"):
        _ranks.read(only.folder, "pop10")
    path = only.folder / "ranks.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read: .* tests it again"):
        _ranks.read(only.folder, "uni10")


def test_verdicts(tmp_path):
    users = 100_000
    ranks = np.random.default_rng(0).integers(1, 40, (3, users)).astype(float)
    rows = {
        "reference": runs_of(tmp_path, "reference", ranks),
        "same": runs_of(tmp_path, "same", ranks),
        "better": runs_of(tmp_path, "better", np.ceil(ranks / 2)),
        "worse": runs_of(tmp_path, "worse", ranks * 1.2),
        "unlike": runs_of(tmp_path, "unlike", ranks[:2] * [[0.85], [1.15]]),
        "others": runs_of(tmp_path, "others", ranks, users=np.arange(users) + 1),
        "missing": [],
    }
    lines = {x.row: x for x in comparison.compare(rows, "reference", "full/recall@10")}
    assert {name: line.verdict for name, line in lines.items()} == {
        "reference": "reference",
        "same": "not worse",
        "better": "better",
        "worse": "worse",
        "unlike": "undecided",  # its seeds are far apart
        "others": "asks other users",
    }
    assert lines["better"].seconds == 6
    assert lines["same"].comparison["difference"] == 0
    raw = lines["unlike"].comparison["p_value"]
    assert raw < lines["unlike"].p_holm <= 4 * raw
    text = comparison.describe(list(lines.values()), "reference", "full/recall@10")
    assert re.search(r"better +3 +0\.\d{4} ± 0\.\d{4} +\+0\.\d{4} \[\+0\.\d{4}, ", text)
    assert "Holm" in text and "single seed" not in text


def test_an_old_run_without_buckets_or_protocol_is_described():
    metrics = {"full/ndcg@10": 0.5, "full/coverage@10": 0.25, "repeated_targets": 0.0}
    described = _results.describe_run(
        {
            "dataset": "toy",
            "model": "dense",
            "best_step": 1,
            "steps": 2,
            "train_seconds": 3.0,
            "device": "cpu",
            "test": metrics,
            "popularity": {"full/ndcg@10": 0.25},
            "protocol": {"rule": "leave_one_out"},
        }
    )
    assert [line.split()[1:] for line in described.splitlines() if line.startswith("full/")] == [
        ["0.5000", "0.2500", "2.00"],
        ["0.2500", "-", "-"],
    ]


def run_here(commands, jobs, gpus, after):
    """Runs the commands of a sweep in this process, one after the other."""
    assert jobs == 2 and not gpus
    assert {tuple(command[:3]) for command in commands.values()} == {
        (sys.executable, "-m", "experiments.sweep")
    }
    codes = {}
    for name, command in commands.items():
        failed = [codes[before] for before in after.get(name, ()) if codes[before]]
        codes[name] = failed[0] if failed else sweep.main(command[3:])
    return codes


@pytest.fixture(scope="module")
def swept(log, tmp_path_factory):
    """Returns a sweep's folder and what was printed: one row seed by seed, one as one program."""
    tmp_path = tmp_path_factory.mktemp("swept")
    path = write_sweep(
        tmp_path / "s.py", rows={"blossom": {}, "undecayed": {"train.weight_decay": 0}}
    )
    changes = {"train__num_steps": 10, "eval__every_steps": 5}
    arguments = [*flags(log, tmp_path / "sweep", **changes), f"--sweep={path}", "--seeds=2"]
    one_device = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sharding, "make_mesh", one_device)
        patch.setattr(processes, "run_all", run_here)
        assert sweep.main([*arguments, "--only=undecayed"]) == 0
        assert sweep.main([*arguments, "--together", "--jobs=2"]) == 0
    return tmp_path / "sweep", printed.getvalue()


def test_a_sweep_trains_what_is_missing_and_compares(swept):
    workdir, printed = swept
    lines = [json.loads(line) for line in (workdir / "runs.jsonl").read_text().splitlines()]
    assert [(line["row"], line["seed"]) for line in lines] == [
        *(("blossom", 0), ("blossom", 1), ("undecayed", 0), ("undecayed", 1))
    ]
    assert all(line["full/ndcg@10"] > 0.1 for line in lines)
    together = [
        json.loads((workdir / row / f"seed_{seed}" / "results.json").read_text())[
            "trained_together"
        ]
        for row in ("blossom", "undecayed")
        for seed in (0, 1)
    ]
    assert together == [2, 2, 1, 1]
    assert "undecayed" in printed and "reference" in printed and "paired bootstrap" in printed
    # Ten steps of decay are little: the rows are nearly the same runs, whichever way trained.
    (_, other) = json.loads((workdir / "summary.json").read_text())
    assert abs(other["comparison"]["difference"]) < 0.01


def test_the_report_shows_a_sweep_and_a_run(swept, tmp_path, capsys):
    output = tmp_path / "page.html"
    report.main([str(swept[0]), str(swept[0] / "blossom" / "seed_0"), f"--output={output}"])
    assert capsys.readouterr().out.strip() == str(output)
    page = output.read_text()
    # Curves, two kinds of buckets, cost; gates and selection of three series.
    assert page.count("data:image/png;base64,") == 4 + 3 * 2
    assert "src=http" not in page and "Cannot be shown" not in page
    assert "p (Holm)" in page and "RecBole" in page and "seed_0 (blossom)" in page


def test_a_folder_without_a_finished_run_cannot_be_reported(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        report.main([str(tmp_path)])


def test_a_damaged_sweep_is_named(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="sweep.json is damaged"):
        folder.read_runs(tmp_path)
