"""The report for a GPU, on a CPU: what it measures, in which order, and what it leaves out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import gpu_report, machine, measure, training

TINY = training.Workload(32, 64, 20, heads=4, kv_heads=2, head_size=4, dtype="float32")


@pytest.fixture(autouse=True)
def _known_ceilings(monkeypatch):
    monkeypatch.setattr(machine, "measure_ceilings", lambda rounds: machine.Ceilings(1e9, 1e8))


def _read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _step_without_model(work, attention, implementation):
    """Holds more and takes longer in dense attention."""
    x = jnp.ones((4096 if attention == "dense" else 64, 64))
    program = jax.jit(lambda x: x @ x.T).lower(x).compile()
    return training.Step(lambda: {"out": program(x)}, program)


def test_files_hold_every_measurement(tmp_path, monkeypatch, capsys):
    small = {"heads": 4, "kv_heads": 2, "head_size": 8, "dtype": "float32"}
    monkeypatch.setattr(gpu_report, "_HEADS", small)
    monkeypatch.setattr(training, "prepare", _step_without_model)
    flags = ["--few", "--tokens=64", "--lengths=32", "--rounds=1", "--commit=abc", "--items=20"]
    flags += ["--training-tokens=64", "--training-lengths=32", f"--output={tmp_path / 'out'}"]
    benchmark.main(["gpu-report", *flags])
    about = json.loads((tmp_path / "out" / "machine.json").read_text())
    assert about["bytes_per_second"] == 1e9 and about["commit"] == "abc" and about["jax"]
    attended, trained = (_read(tmp_path / "out" / f"{n}.jsonl") for n in ("attention", "training"))
    names = ["triton", "xla", "cudnn", "cudnn:2x64", "cudnn:1x128"]
    contenders = [f"{'blossom' if n < 2 else 'dense'}_{name}" for n, name in enumerate(names)]
    both = [("forward_backward", name) for name in contenders]
    both += [("forward", name) for name in contenders]
    assert [(r["measured"], r["attention"]) for r in attended] == both
    assert [r["model"] for r in trained] == ["blossom_auto", "dense_xla", "blossom_xla"]
    for record in trained:
        assert record["tokens_per_second"] == 64 / record["seconds"]
        others = {r["model"]: r for r in trained if r is not record}
        for field, ratio in (("seconds", "speedup"), ("program_bytes", "memory_ratio")):
            expected = {name: other[field] / record[field] for name, other in others.items()}
            assert record[ratio] == expected
    assert (tmp_path / "out" / "attention.png").stat().st_size > 1000
    assert "vs dense_xla" in capsys.readouterr().out


def test_nothing_is_begun_when_the_time_is_spent(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, *[11.0] * 99])
    monkeypatch.setattr(gpu_report.time, "monotonic", lambda: next(clock))
    measured = []
    monkeypatch.setattr(gpu_report.attention, "compare", lambda *args: measured.append(args[1:3]))
    benchmark.main(["gpu-report", "--full", "--seconds=10", f"--output={tmp_path}"])
    ((size, direction),) = measured
    assert (size.length, size.rows, size.dtype, direction) == (
        8192,
        128,
        "bfloat16",
        "forward_backward",
    )
    left_out = _read(tmp_path / "attention.jsonl") + _read(tmp_path / "training.jsonl")
    assert {record["error"] for record in left_out} == {"not begun within 10 s"}
    goals = {512, 1024, 2048, 4096, 8192, 16384}
    assert {r["length"] for r in left_out} == goals | {128, 256, 32768, 65536}
    assert {r["head_size"] for r in left_out if "head_size" in r} == {16, 32, 64}
    assert {r["dtype"] for r in left_out if "dtype" in r} == {"bfloat16", "float32"}
    assert {(r["heads"], r["kv_heads"]) for r in left_out if "heads" in r} == {(8, 2), (4, 1)}
    assert [r["length"] for r in _read(tmp_path / "training.jsonl")] == [8192, 2048, 16384]


def test_an_error_does_not_stop_the_report():
    report = measure.Report("attention")

    def fails():
        raise RuntimeError("RESOURCE_EXHAUSTED: 7 bytes")

    task = gpu_report.Task({"attention": "all", "length": 8}, report, fails)
    gpu_report.attempt(task, True, 1.0)
    assert report.records[0]["error"].startswith("out of memory")
    assert report.records[0]["length"] == 8 and report.records[0]["seconds"] is None


def test_the_batch_asks_for_each_next_item():
    batch = TINY.batch()
    assert {name: array.shape for name, array in batch.items()} == dict.fromkeys(batch, (2, 32))
    np.testing.assert_array_equal(batch["item_ids"][:, 1:], batch["targets"][:, :-1])
    assert batch["targets"].min() >= 1 and batch["item_ids"].max() <= 20
    np.testing.assert_array_equal(batch["positions"], np.tile(np.arange(32), (2, 1)))


def test_models_differ_in_their_attention_alone():
    blossom, dense = TINY.model("blossom", ""), TINY.model("dense", "xla")
    assert (blossom.hidden_size, blossom.head_size, blossom.max_length) == (16, 4, 32)
    assert (dense.attention, dense.implementation) == ("dense", "xla")
    assert dense.inner_size == blossom.inner_size == 64


def test_dense_twin_asks_a_gpu_for_cudnn(monkeypatch):
    assert training.contenders()["dense_xla"] == ("dense", "xla")
    monkeypatch.setattr(training.jax, "default_backend", lambda: "gpu")
    assert training.contenders()["dense_cudnn"] == ("dense", "cudnn")


def test_a_model_that_cannot_train_is_reported():
    report = measure.Report("training")
    chosen = {"bad": ("blossom", "triton_interpret_not"), "good": ("dense", "xla")}
    training.compare(chosen, TINY, 1, report)
    bad, good = report.records
    assert bad["error"].startswith("UserError: model.implementation") and not bad["seconds"]
    assert good["seconds"] > 0 and good["speedup"] == {}
    training.print_table(report.records)
