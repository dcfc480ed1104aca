"""The training command on a tiny log: its files, and that kill -9 and SIGTERM change nothing."""

import json
import os
import shutil
import signal
import time

import polars as pl
import pytest
from tiny_training import flags, results_of, run, start

from blossom_jax import metrics
from blossom_jax.data import from_table, interactions
from blossom_jax.errors import UserError
from experiments import _cli, _commit, _ranks, _workdir, evaluate, train
from experiments._plan import make_plan


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
    assert set(results["test"]) - set(results["popularity"]) == {"loss"}
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


def config_of(log, workdir, **changes):
    parser = _cli.ArgumentParser()
    parser.add_argument("--workdir")
    return _cli.parse_with_config(parser, flags(log, workdir, **changes)).config


def test_the_commit_is_that_at_the_start(log, tmp_path, monkeypatch):
    few = {"train__num_steps": 2, "train__warmup_steps": 0, "eval__every_steps": 2}
    config = config_of(log, tmp_path, **few)
    monkeypatch.setattr(_commit, "git_commit", lambda: "begun")
    plan = make_plan(config)
    monkeypatch.setattr(_commit, "git_commit", lambda: "made while it trains")
    results = train.run(plan, tmp_path / "run")
    assert results["commit"] == results["protocol"]["commit"] == "begun"


def test_a_process_keeps_the_commit_that_it_read_first(monkeypatch):
    first = _commit.git_commit()
    monkeypatch.setattr(_commit.subprocess, "check_output", lambda *_, **__: "another")
    assert _commit.git_commit() == first != "another"


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
    assert all(0 < line["loss"] < 5 for line in lines)


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


def stop(process, workdir, *, after, by):
    """Sends a signal to a run that has saved a step; returns its exit code and what it said."""
    while not (workdir / "checkpoints" / f"{after}").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(by)
    _, said = process.communicate()
    assert not (workdir / "results.json").exists()
    return process.returncode, said


def test_killed_and_started_again_equals_uninterrupted(whole, log, tmp_path):
    killed = tmp_path / "killed"
    stop(start("train", *flags(log, killed)), killed, after=9, by=signal.SIGKILL)
    again = start("train", *flags(log, killed))
    code, said = stop(again, killed, after=21, by=signal.SIGTERM)
    assert code == 0 and "; run the same command to go on" in said
    assert run("train", *flags(log, killed, data__num_workers=1))
    assert (killed / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert results_of(killed) == results_of(whole[0])


def leave(code):
    raise SystemExit(code)


@pytest.mark.parametrize("where", ["make_plan", "_start_or_resume", "_test"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_before_and_after_training_ends_the_command(
    whole, log, tmp_path, monkeypatch, capfd, where, number, code
):
    workdir = tmp_path / "run"
    if where == "_test":
        shutil.copytree(whole[0], workdir)
        (workdir / "results.json").unlink()
    monkeypatch.setattr(train, where, lambda *_: os.kill(os.getpid(), number))
    monkeypatch.setattr(os, "_exit", leave)  # pytest goes on
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        train.main(flags(log, workdir))
    assert ended.value.code == code and signal.getsignal(number) is before
    assert "stopped; run the same command to go on\n" in capfd.readouterr().err
    assert not (workdir / "results.json").exists()
    monkeypatch.undo()
    _workdir.check_config(workdir, config_of(log, workdir))  # the same command goes on


def test_a_finished_run_does_not_answer_for_other_data(whole, log, tmp_path):
    table = pl.DataFrame({"user": ["1"] * 5, "item": list("abcde")})
    interactions.save(from_table(table, name="tiny"), tmp_path / "other")
    with pytest.raises(UserError, match="the data of tiny changed since this run began"):
        train.main(flags(tmp_path / "other", whole[0]))


def test_two_processes_do_not_train_in_one_folder(log, tmp_path):
    with _workdir.locked(tmp_path), pytest.raises(UserError, match="another process trains there"):
        train.main(flags(log, tmp_path))
    with _workdir.locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_where_the_best_checkpoint_is_damaged_the_results_are_of_the_last_state(log, tmp_path):
    learns_nothing = flags(log, tmp_path, train__learning_rate=0.0, train__num_steps=20)
    train.main(learns_nothing)
    assert results_of(tmp_path)["best_step"] == 10
    (tmp_path / "results.json").unlink()
    (tmp_path / "checkpoints" / "10" / "sha256.json").unlink()
    train.main(learns_nothing)
    results, again = results_of(tmp_path), evaluate.evaluate(tmp_path, "valid", 20)["model"]
    assert results["best_step"] == 20
    assert results["valid"] == {name: again[name] for name in results["valid"]}


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
    assert rows[2]["loss"] == pytest.approx(test["loss"])  # by another program
    same = [name for name in test if "coverage" not in name and name != "loss"]
    assert [rows[2][name] for name in same] == [test[name] for name in same]
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


def test_damaged_results_are_named_and_how_to_get_them_back(whole, log, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match="results.json is damaged; delete it"):
        train.main(flags(log, tmp_path / "run"))
    path.unlink()
    assert run("train", *flags(log, tmp_path / "run")) == whole[1]
