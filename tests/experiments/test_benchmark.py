import json
import sys
import types

import jax
import numpy as np
import polars as pl
import pytest

from blossom_jax.data import from_table, interactions
from blossom_jax.errors import UserError
from configs import common
from experiments import _setup
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import measure, throughput

PACKED = {
    "item_ids": np.array([[3, 4, 5, 6, 7, 0], [8, 9, 1, 2, 3, 4]], np.int32),
    "targets": np.array([[4, 9, 6, 7, 8, 0], [9, 2, 2, 3, 4, 5]], np.int32),
    "positions": np.array([[0, 1, 0, 1, 2, -1], [0, 1, 0, 1, 2, 3]], np.int32),
}
PADDED = {
    "item_ids": [[3, 4, 0, 0], [5, 6, 7, 0], [8, 9, 0, 0], [1, 2, 3, 4]],
    "targets": [[4, 9, 0, 0], [6, 7, 8, 0], [9, 2, 0, 0], [2, 3, 4, 5]],
    "positions": [[0, 1, -1, -1], [0, 1, 2, -1], [0, 1, -1, -1], [0, 1, 2, 3]],
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "--heads=3", "--kv-heads=2"], "--kv-heads=2 must divide --heads=3"),
        (["attention", "--lengths=64,128,256", "--rows=1,2"], "--rows needs one number"),
        (["attention", "--lengths=0"], "'0' is not a whole number"),
        (["attention", "--peers=none"], "'none' is none of xla, cudnn, torch"),
        (["attention", "--peers=cudnn:2x"], "'cudnn:2x' is none of xla, cudnn, torch"),
        (["attention", "--implementations=fast"], "'fast' is none of auto, triton"),
        (["attention", "--lengths=64,96", "--tokens=256"], "no whole number of rows of length=96"),
        (["attention", "--rows=1", "--tokens=64"], "not allowed with argument --rows"),
        (["latency", "--items=9", "--top-k=10"], "--top-k=10 exceeds a catalogue of 9"),
        (["bounded"], "--workdir"),
        (["tune", "--output=tiles.json"], "tune needs a GPU"),
        (["tune", "--output=no/such/folder/tiles.json"], "there is no folder no/such/folder"),
        (["gpu-report"], "--output"),
        (["gpu-report", "--output=x", "--few", "--full"], "not allowed with"),
        (["gpu-report", "--output=x", "--tokens=9", "--lengths=2"], "--tokens=9 is no whole"),
        (["throughput", "--dataset=none"], "no config has that name"),
        (["evaluation", "--dataset=sweeps"], "--dataset=sweeps: no config has that name"),
        (["evaluation", "--batch-rows=0"], "'0' is not a whole number of at least 1"),
        (["step", "--json=no/such/folder/step.jsonl"], "there is no folder no/such/folder"),
        (["throughput", "--rounds=x"], "'x' is not a whole number"),
        (["loss", "--losses=hinge"], "'hinge' is none of plain, cross_entropy"),
        (["step", "--steps=hinge"], "'hinge' is none of plain, cross_entropy"),
        (["step", "--items=0"], "'0' is not a whole number"),
        (["input", "--dataset=none"], "no config has that name"),
        (["input", "--plot=no/such/folder/input.svg"], "there is no folder no/such/folder"),
        ([], "COMMAND"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        benchmark.main(arguments)


def test_unpack_gives_each_history_its_own_row():
    padded = throughput.unpack(PACKED, 4)
    assert {name: array.tolist() for name, array in padded.items()} == PADDED


def _config():
    config = common.get_config()
    config.train.loss_chunk = 16
    # Dense attention without dropout compiles fastest, and what is tested is the same for all.
    config.model.update(attention="dense", hidden_size=8, inner_size=8, num_layers=1)
    config.model.update(num_heads=2, num_kv_heads=1, dropout=0.0, embedding_dropout=0.0)
    return config


def test_encoder_does_the_same_work_in_both_layouts():
    prepare = throughput.encode(_setup.model_maker(_config(), 20))
    packed, padded = prepare(PACKED)(), prepare(throughput.unpack(PACKED, 4))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed, padded)


def test_step_does_the_same_work_in_both_layouts():
    prepare = throughput.step(_setup.model_maker(_config(), 20), _config())
    packed, padded = prepare(PACKED)(), prepare(throughput.unpack(PACKED, 4))()
    assert packed["count"] == 11
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), packed, padded)


def test_throughput_is_of_the_tokens_that_matter():
    padded = throughput.unpack(PACKED, 4)
    report = measure.Report("throughput")
    layouts = {"packed": PACKED, "padded": padded}
    throughput.compare("waiting", layouts, lambda batch: lambda: batch["item_ids"], 3, report)
    packed, padded = report.records
    assert (packed["layout"], padded["layout"]) == ("packed", "padded")
    assert padded["seconds_ratio"] == padded["seconds"] / packed["seconds"]
    for record in report.records:
        assert record["tokens"] == 11
        assert record["tokens_per_second"] == 11 / record["seconds"]
        assert record["fill"] == 11 / (record["rows"] * record["row_length"])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A config of that name, whose log has six histories of six events."""
    events = [(user, item) for user in range(6) for item in range(user, user + 6)]
    table = pl.DataFrame(events, schema=["user", "item"], orient="row").cast(pl.String)
    interactions.save(from_table(table, name="tiny"), tmp_path / "log")
    config = _config()
    config.model.max_length, config.data.row_length, config.train.batch_rows = 4, 8, 2
    config.data.name, config.data.path = "custom", str(tmp_path / "log")
    tiny = types.SimpleNamespace(get_config=config.lock)
    monkeypatch.setitem(sys.modules, "configs.tiny", tiny)


def _run(tmp_path, *arguments):
    lines = tmp_path / "lines.jsonl"
    benchmark.main([*arguments, "--dataset=tiny", "--rounds=1", f"--json={lines}"])
    return [json.loads(line) for line in lines.read_text().splitlines()]


@pytest.mark.usefixtures("tiny")
def test_throughput_measures_every_layout(tmp_path):
    records = _run(tmp_path, "throughput")
    assert [(r["measured"], r["layout"], r["rows"], r["row_length"]) for r in records] == [
        ("encoder", "packed", 2, 8),
        ("encoder", "padded", 4, 4),
        ("whole step", "packed", 2, 8),
        ("whole step", "padded", 4, 4),
        ("whole step", "padded, none skipped", 4, 4),
    ]
    assert {r["tokens"] for r in records} == {12}  # four windows of three inputs


@pytest.mark.usefixtures("tiny")
def test_input_measures_every_part_against_the_step(tmp_path):
    plot = tmp_path / "input.svg"
    records = _run(tmp_path, "input", "--workers=1", "--batches=3", f"--plot={plot}")
    parts = {record["measured"]: record for record in records}
    assert list(parts) == [
        "shuffle",
        "assemble",
        "grain, a thread",
        "grain, 1 workers",
        "devices, a thread",
        "step",
    ]
    # Six windows of three inputs lie two to a row, so in two batches.
    tokens = {name: record["tokens"] for name, record in parts.items()}
    assert tokens == dict.fromkeys(parts, 27) | {"shuffle": 18, "step": 12}
    for record in records:
        assert record["tokens_per_second"] == record["tokens"] / record["seconds"]
    step = parts["step"]["tokens_per_second"]
    assert parts["assemble"]["versus_step"] == parts["assemble"]["tokens_per_second"] / step
    assert plot.read_text().startswith("<?xml")
