"""The benchmark of Blossom against its dense twin, by length."""

import json

import numpy as np
import pytest

from blossom_jax.errors import UserError
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import training, twins

SIZES = ["--items=30", "--heads=2", "--kv-heads=1", "--head-size=4", "--rounds=1"]
WORK = training.Workload(16, 48, 30, heads=2, kv_heads=1, head_size=4, dtype="float32")


def test_both_are_measured_at_each_length(tmp_path, capsys):
    lines = tmp_path / "lines.jsonl"
    flags = ["--lengths=8,24", "--tokens=50", "--models=blossom,dense+xla", *SIZES]
    benchmark.main(["twins", *flags, f"--json={lines}"])
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    found = [(r["length"], r["tokens"], r["measured"], r["model"]) for r in records]
    sizes = ((8, 48), (24, 48))
    measured = ("training step", "recommendation")
    models = ("blossom", "dense+xla")
    assert found == [
        (*size, what, model) for size in sizes for what in measured for model in models
    ]
    for record in records:
        assert record["tokens_per_second"] == record["tokens"] / record["seconds"]
    printed = capsys.readouterr().out
    assert printed.index("training step\n") < printed.index("recommendation\n")


@pytest.mark.parametrize("attention", ["blossom", "dense"])
def test_a_recommendation_scores_all_items_after_the_last_event(attention):
    scores = twins.recommendation(WORK, attention, "xla").call()["scores"]
    assert scores.shape == (3, 31) and np.isfinite(scores[:, 1:]).all()
    shorter = training.Workload(16, 16, 30, heads=2, kv_heads=1, head_size=4, dtype="float32")
    alone = twins.recommendation(shorter, attention, "xla").call()["scores"]
    np.testing.assert_allclose(alone[0], scores[0], rtol=1e-4, atol=1e-6)


def test_tokens_must_hold_a_history():
    with pytest.raises(UserError, match="--tokens=7 hold no history of length=8"):
        benchmark.main(["twins", "--tokens=7", "--lengths=8", *SIZES])
