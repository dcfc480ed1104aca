"""The export command, and that an export measures as its run does."""

import json
import shlex

import numpy as np
import pytest
from tiny_run import make_log, make_run

from blossom_jax.catalogue import Catalogue
from blossom_jax.errors import UserError
from blossom_jax.recommender import Recommender
from experiments import _model_card, evaluate, export


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns the folders of a run and of its export."""
    root = tmp_path_factory.mktemp("export")
    make_run(make_log(root / "log", num_users=15), root / "run")
    export.main([f"--workdir={root / 'run'}", f"--output={root / 'exports' / 'tiny'}"])
    return root / "run", root / "exports" / "tiny"


def test_evaluating_the_export_equals_evaluating_the_run(folders):
    of_run, of_export = (evaluate.evaluate(folder, "test") for folder in folders)
    assert of_export["model"] == pytest.approx(of_run["model"], abs=1e-6)
    assert of_export["popularity"] == of_run["popularity"]
    assert "after step 4" in of_export["title"]


def test_both_recommend_the_same(folders):
    run, exported = (Recommender.load(folder, batch_users=1) for folder in folders)
    assert run.recommend([["i1", "i2"]]) == exported.recommend([["i1", "i2"]])


def test_the_example_is_what_a_shell_and_load_py_take():
    ids = ["a,b", "cödé 5", 'it"em', "$x", "7"]
    shown = _model_card.example(Catalogue("tiny", ids, np.ones(5, np.int64)))
    assert shlex.split(shown) == ['cödé 5,it"em,$x']


def test_the_card_says_what_was_not_measured(folders):
    card = (folders[1] / "README.md").read_text()
    assert "blossom attention on tiny" in card and "scores 29 items" in card
    assert "tiny: 94 events of" in card
    assert "Not measured on the test targets: its run was not finished" in card


def test_the_card_has_the_test_metrics_of_a_finished_run(folders, tmp_path):
    run, _ = folders
    metrics = {"full/ndcg@10": 0.125}
    results = {
        **{"dataset": "tiny", "model": "blossom", "best_step": 4, "steps": 4, "train_seconds": 1.0},
        **{"device": "cpu", "seed": 0, "jax": "0", "commit": "", "num_users": 30, "num_items": 30},
        **{"test": metrics, "popularity": {"full/ndcg@10": 0.1}},
        **{"test_by_length": [], "test_by_popularity": [], "protocol": {"rule": "leave_one_out"}},
        "data": {"terms": "Ask first", "content_hash": "abc"},
    }
    (run / "results.json").write_text(json.dumps(results))
    try:
        export.main([f"--workdir={run}", f"--output={tmp_path / 'again'}"])
    finally:
        (run / "results.json").unlink()
    card = (tmp_path / "again" / "README.md").read_text()
    assert "0.1250" in card and "Ask first" in card and "leave_one_out" in card


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (lambda run, out: [f"--workdir={run}", f"--output={out}"], "is there already"),
        (lambda run, out: [f"--workdir={out}", f"--output={out}-2"], "is an export already"),
        (lambda run, out: [f"--workdir={run}", f"--output={out}-2", "--step=5"], "it has: 4"),
    ],
)
def test_what_cannot_be_exported_is_refused(folders, flags, words):
    with pytest.raises(UserError, match=words):
        export.main(flags(*folders))
    assert not folders[1].with_name("tiny-2").exists()
