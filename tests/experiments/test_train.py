"""The training command on a tiny log: its files, kill -9 and resume, and what it refuses."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import numpy as np
import polars as pl
import pytest

from blossom_jax import metrics
from blossom_jax.config import ModelConfig
from blossom_jax.data import from_table, interactions
from blossom_jax.errors import MissingFileError, UserError
from experiments import _cli, _ranks, _setup, _workdir, evaluate, train
from experiments._plan import make_plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {
    "data.row_length": 32,
    "model.hidden_size": 16,
    "model.inner_size": 16,
    "model.num_layers": 1,
    "model.compress_block_size": 4,
    "model.compress_stride": 2,
    "model.selection_block_size": 2,
    "model.num_selected_blocks": 2,
    "model.max_length": 16,
    "train.batch_rows": 8,
    "train.num_steps": 40,
    "train.loss": "sampled_softmax",  # has more to resume than the default: the draws
    "train.negatives": "popularity",
    "train.num_negatives": 20,
    "eval.every_steps": 10,
    "eval.batch_users": 64,
    "eval.num_negatives": 10,
    "checkpoint.every_steps": 3,
    "log.every_steps": 5,
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Returns a folder with 60 users who walk along a ring of 30 items, 1 to 30 events each."""
    rng = np.random.default_rng(0)
    rows = [
        (str(user), str(item))
        for user in range(60)
        for item in (rng.integers(30) + np.arange(1 + user // 2)) % 30
    ]
    folder = tmp_path_factory.mktemp("log") / "tiny"
    table = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    interactions.save(from_table(table, name="tiny"), folder)
    return folder


def flags(log, workdir, **changes):
    values = SIZES | {"data.path": log} | {key.replace("__", "."): v for key, v in changes.items()}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return [f"--config={ROOT}/configs/custom.py", f"--workdir={workdir}", *overrides]


def start(module, *arguments):
    """Starts a command in a process of its own, on one device, compiled as users compile it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(module, *arguments):
    """Returns what a command that must succeed prints to standard output."""
    process = start(module, *arguments)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def results_of(workdir):
    """Returns results.json without the one value that depends on the clock."""
    results = json.loads((workdir / "results.json").read_text())
    assert results.pop("train_seconds") > 0
    return results


@pytest.fixture(scope="module")
def whole(log, tmp_path_factory):
    """Returns the folder of a run that nothing interrupted, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, run("train", *flags(log, workdir))


def test_results_hold_what_is_needed_to_judge_them(whole):
    workdir, _ = whole
    results = results_of(workdir)
    assert results["dataset"] == "tiny"
    assert (results["num_users"], results["num_items"]) == (60, 30)
    assert (results["steps"], results["seed"]) == (40, 0)
    assert results["num_params"] > 30 * 16
    for name in ("full/recall@10", "full/ndcg@10", "full/mrr@10", "full_keep/ndcg@10"):
        assert results["test"][name] > results["popularity"][name]
    assert set(results["test"]) == set(results["popularity"])
    coverage = {f"{rule}/coverage@{k}" for rule in ("full", "full_keep") for k in (1, 5, 10, 20)}
    assert set(results["test"]) - set(results["valid"]) == coverage
    assert results["test"]["full_keep/coverage@10"] > results["popularity"]["full_keep/coverage@10"]
    for buckets in ("test_by_length", "test_by_popularity"):
        assert sum(bucket["num_users"] for bucket in results[buckets]) == 56
    assert results["protocol"]["test"]["users"] == 56
    assert results["data"]["content_hash"]


def test_the_protocol_is_saved_and_printed(whole):
    workdir, printed = whole
    results = results_of(workdir)
    card = results["protocol"]
    assert card["data_hash"] == results["data"]["content_hash"]
    assert card["commit"] == results["commit"]
    assert (card["rule"], card["negatives"]["number"]) == ("leave_one_out", 10)
    shown = printed[printed.index("\nprotocol\n") :]
    for protocol in ("full", "full_keep", "uni10", "uni10_unseen", "pop10", "pop10_unseen"):
        assert f"{protocol}/recall@10" in results["test"]
        assert f"\n  {protocol}  " in shown
    assert card["data_hash"][:16] in shown and "56 users" in shown


def test_the_commit_is_that_at_the_start(log, tmp_path, monkeypatch):
    parser = _cli.ArgumentParser()
    parser.add_argument("--workdir")
    few = {"train__num_steps": 2, "train__warmup_steps": 0, "eval__every_steps": 2}
    config = _cli.parse_with_config(parser, flags(log, tmp_path, **few)).config
    monkeypatch.setattr(_workdir, "git_commit", lambda: "begun")
    plan = make_plan(config)
    monkeypatch.setattr(_workdir, "git_commit", lambda: "made while it trains")
    results = train.run(plan, tmp_path / "run")
    assert results["commit"] == results["protocol"]["commit"] == "begun"


def test_a_process_keeps_the_commit_that_it_read_first(monkeypatch):
    first = _workdir.git_commit()
    monkeypatch.setattr(_workdir.subprocess, "check_output", lambda *_, **__: "another")
    assert _workdir.git_commit() == first != "another"


def test_the_rank_of_every_target_is_saved(whole):
    workdir, _ = whole
    for protocol in ("full", "pop10_unseen"):
        users, ranks = _ranks.read(workdir, protocol)
        assert len(users) == 56
        expected = results_of(workdir)["test"][f"{protocol}/ndcg@10"]
        assert metrics.gains_from_ranks(ranks, "ndcg@10").mean() == pytest.approx(expected)


def test_metrics_are_logged_as_often_as_asked(whole):
    lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    steps = {
        split: [line["step"] for line in lines if line["split"] == split]
        for split in ("train", "valid", "test")
    }
    assert steps == {
        "train": list(range(5, 41, 5)),
        "valid": [10, 20, 30, 40],
        "test": [40],
    }
    assert lines[-1]["full/ndcg@10"] == results_of(whole[0])["test"]["full/ndcg@10"]
    assert all(0 < line["loss"] < 5 for line in lines if line["split"] == "train")


def test_popularity_is_printed_beside_the_model(whole):
    _, printed = whole
    popularity = results_of(whole[0])["popularity"]["full/ndcg@10"]
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("full/ndcg@10")]
    assert row[2] == f"{popularity:.4f}"
    assert float(row[3]) > 1


def test_coverage_and_buckets_are_printed(whole):
    workdir, printed = whole
    results = results_of(workdir)
    for name in ("full/coverage@10", "full_keep/coverage@10"):
        assert f"{name}  " in printed and f"{results['test'][name]:.4f}" in printed
    for bucket in results["test_by_popularity"]:
        assert f"{bucket['min_count']}-{bucket['max_count']}  " in printed


def test_killed_and_started_again_equals_uninterrupted(whole, log, tmp_path):
    killed = tmp_path / "killed"
    process = start("train", *flags(log, killed))
    while not (killed / "checkpoints" / "24").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "results.json").exists()
    assert run("train", *flags(log, killed, data__num_workers=1))
    assert (killed / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert results_of(killed) == results_of(whole[0])


def test_a_finished_run_prints_its_results_again(whole, log, capsys):
    workdir, printed = whole
    before = (workdir / "metrics.jsonl").stat()
    train.main(flags(log, workdir))
    assert capsys.readouterr().out == printed
    assert (workdir / "metrics.jsonl").stat() == before


def test_evaluating_again_gives_the_same(whole):
    workdir, _ = whole
    measured = json.loads(run("evaluate", f"--workdir={workdir}", "--json"))
    assert measured["model"] == results_of(workdir)["test"]
    assert measured["popularity"] == results_of(workdir)["popularity"]


def test_evaluating_again_with_less_of_each_history_and_out_of_order(whole):
    workdir, _ = whole
    test = results_of(workdir)["test"]
    measured = evaluate.perturbed(workdir, "test", lengths=[2, 8, 999])
    rows = measured["rows"]
    assert [row["last"] for row in rows] == [2, 8, 16]  # the model sees 16 events at most
    assert rows[0]["changed"] > rows[1]["changed"] > rows[2]["changed"] > 0
    # The next item is one place along the ring, which the last event tells.
    assert rows[0]["full/ndcg@10"] > 0.5 * rows[2]["full/ndcg@10"] > 0
    assert {name: rows[2][name] for name in test if "coverage" not in name} == {
        name: value for name, value in test.items() if "coverage" not in name
    }
    shuffled = evaluate.perturbed(workdir, "test", lengths=[])["rows"]
    assert shuffled[0]["full/ndcg@10"] == test["full/ndcg@10"]
    assert max(row["full/ndcg@10"] for row in shuffled[1:]) < 0.7 * test["full/ndcg@10"]


def test_a_run_can_be_evaluated_with_another_selector(whole):
    # With all blocks chosen it does not matter who chooses; and none but the model's own counts.
    every = "--config.model.num_selected_blocks=8"
    found = [
        evaluate.evaluate(whole[0], "test", overrides=[every, f"--config.model.selector={name}"])
        for name in ("compressor", "recent")
    ]
    assert found[0]["model"] == pytest.approx(found[1]["model"], rel=1e-3)
    assert found[0]["model"]["full/ndcg@10"] > found[0]["popularity"]["full/ndcg@10"]
    with pytest.raises(UserError, match="shape .* in the run, and .* choose values that leave it"):
        evaluate.evaluate(whole[0], "test", overrides=["--config.model.hidden_size=32"])


def test_another_config_is_refused_with_both_values(whole, log):
    with pytest.raises(UserError, match="train.learning_rate is 0.001 there and 0.5 here") as error:
        train.main(flags(log, whole[0], train__learning_rate=0.5))
    assert "seed" not in str(error.value)


def test_changed_data_is_refused(whole, monkeypatch):
    table = pl.DataFrame({"user": ["1"] * 5, "item": list("abcde")})
    changed = from_table(table, name="tiny")
    monkeypatch.setattr(train._setup.data, "load_dataset", lambda *args, **kwargs: changed)
    with pytest.raises(UserError, match=f"data of tiny changed .* {changed.content_hash} now"):
        evaluate.evaluate(whole[0], "test")


LAZY = {"train__item_optimizer": "lazy"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__batch_rows": 6}, "batch not divisible by devices: train.batch_rows=6 over 8"),
        ({"mesh__data": 3}, "mesh of data=3 x model=1 does not fit 8"),
        ({"model__hidden_size": 1_600_000}, r"needs [\d,]{16,} bytes, more than the [\d,]+ of"),
        ({"data__row_length": 10**9}, r"needs [\d,]{13,} bytes, more than the [\d,]+ of"),
        ({"train__batch_rows": 8 * 10**9}, r"needs [\d,]{13,} bytes, more than the [\d,]+ of"),
        ({"train__batch_rows": 8 * 2**19}, "elements for each activation: train.batch_rows x data"),
        ({"model__window": 10**11}, r"model.window must be below 2\*\*31, got 100000000000"),
        ({"train__learning_rate": "inf"}, "must be finite and not negative, learning_rate=inf"),
        ({"model__num_heads": 5}, "num_heads"),
        ({"eval__metric": "full/ndcg@11"}, "did you mean full/ndcg@1"),
        ({"eval__ks": "0,10"}, "eval.ks"),
        ({"eval__ks": "1.5,10"}, "eval.ks must be whole numbers"),
        ({"eval__ks": "()"}, "eval.ks"),
        ({"eval__negatives_seed": -1}, "eval.negatives_seed must not be negative: -1"),
        ({"model__causal": False}, "train.target must be 'last'"),
        ({"train__target": "masked"}, "train.target must be 'all' or 'last', got 'masked'"),
        ({"train__mask_probability": 0.0}, "train.mask_probability must lie between 0 and 1"),
        (
            {"model__objective": "masked", "model__causal": False, "train__target": "last"},
            "train.target='last' is for model.objective='next'",
        ),
        ({"eval__num_negatives": 0}, "eval.num_negatives"),
        ({"eval__batch_users": 12}, "eval.batch_users=12"),
        ({"eval__batch_users": 8 * 10**9}, r"evaluation needs [\d,]{13,} bytes.*eval.batch_users"),
        ({"train__loss_chunk": -1}, "train.loss_chunk must be at least 0"),
        ({"train__loss": "hinge"}, "train.loss must be one of"),
        (
            {"train__loss": "gbce", "train__num_negatives": 10**6},
            "must be below the .* items of th",
        ),
        ({"train__item_optimizer": "sgd"}, "must be 'dense' or 'lazy', got 'sgd'"),
        (LAZY | {"train__loss": "cross_entropy"}, "loss=cross_entropy reads all: choose a loss by"),
        (LAZY | {"train__shared_negatives": False}, "train.shared_negatives=false reads"),
        (LAZY | {"train__accumulate_steps": 2}, "train.accumulate_steps=2 makes one update of"),
        (LAZY | {"mesh__model": 2}, "mesh.model=2 splits them over devices: set it to 1, or leave"),
        ({"model__remat": "all"}, "model.remat must be one of 'none', 'block', got 'all'"),
        ({"train__schedule": "linear"}, "schedule='linear'"),
        ({"data__split": "random"}, "data.split must be"),
        ({"data__split": "global_time"}, "has no times"),
        ({"data__path": "nowhere"}, "nowhere"),
        ({"data__path": "", "data__name": "ml_10m"}, "unknown data set 'ml_10m'"),
        ({"data__path": "", "data__min_user_events": 99}, "data.path"),
        ({"seed": -1}, "seed must lie in"),
        ({"train__patience": -1}, "train.patience must not be negative, got -1"),
        ({"checkpoint__every_steps": -1}, "checkpoint.every_steps must not be negative"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(log, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train.main(flags(log, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_what_evaluation_needs_is_known_to_the_byte_before_training(log, tmp_path, monkeypatch):
    monkeypatch.setattr("blossom_jax.memory.available_bytes", lambda devices: 100_000_000)
    with pytest.raises(UserError, match=r"evaluation needs [\d,]{11,} bytes, more than the 100,"):
        train.main(flags(log, tmp_path / "run", eval__batch_users=8 * 20_000))
    assert not (tmp_path / "run").exists()


def test_where_ml_100k_cannot_be_had_the_quickstart_names_the_synthetic_config(
    tmp_path, monkeypatch
):
    def refuse(*_):
        raise MissingFileError("ml-100k.inter is not here")

    monkeypatch.setattr("blossom_jax.data.load.find_or_download", refuse)
    config = f"--config={ROOT}/configs/quickstart.py"
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    with pytest.raises(UserError, match=r"ml-100k.inter is not here; .*configs/synthetic\.py"):
        train.main([config, cache, f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_other_errors_in_data_do_not_name_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOSSOM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere is not a folder$"):
        train.main([f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("attention", "said"), [("dense", " (attention by xla)"), ("blossom", ""), ("gru", "")]
)
def test_a_run_says_what_serves_dense_attention(attention, said):
    assert train._setup.served_by(ModelConfig(attention=attention, positions="none")) == said


def test_a_missing_flag_is_named(tmp_path):
    with pytest.raises(UserError, match="--workdir, --config"):
        train.main([])


@pytest.mark.parametrize("content", ["{", "[]", '{"seed": 0}'])
def test_a_damaged_config_of_a_run_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json is damaged"):
        _workdir.read_config(tmp_path)


def test_damaged_results_are_named_and_how_to_get_them_back(whole, log, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match="results.json is damaged; delete it"):
        train.main(flags(log, tmp_path / "run"))
    path.unlink()
    assert run("train", *flags(log, tmp_path / "run")) == whole[1]


def test_a_folder_without_a_run_cannot_be_evaluated(tmp_path):
    with pytest.raises(UserError, match="holds no run: .*config.json cannot be read: No such file"):
        evaluate.main([f"--workdir={tmp_path}"])


def test_a_workdir_must_be_a_folder(log, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; the workdir must be a folder"):
        train.main(flags(log, tmp_path / "file"))
    with pytest.raises(UserError, match="file/run cannot be made: Not a directory"):
        train.main(flags(log, tmp_path / "file" / "run"))


@pytest.mark.parametrize(
    ("dtype", "capability", "hints"),
    [("float32", "9.0", True), ("bfloat16", "9.0", False), ("float32", "7.5", False)],
)
def test_a_gpu_that_would_be_faster_in_bf16_is_told_so(dtype, capability, hints):
    device = mock.Mock(compute_capability=capability)
    assert ("model.dtype=bfloat16" in _setup.dtype_hint(dtype, device)) == hints
    assert not _setup.dtype_hint("float32", jax.devices("cpu")[0])
