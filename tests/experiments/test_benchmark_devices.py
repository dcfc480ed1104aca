"""The benchmark of several devices, on those that the host plays."""

import json

import jax
import pytest

from blossom_jax import sharding
from blossom_jax.errors import UserError
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import training

SIZES = ["--tokens=64", "--length=16", "--items=30", "--heads=2", "--kv-heads=1", "--head-size=4"]


def step_without_model(loss):
    """Returns a stand-in for `training.prepare`; its loss depends on the mesh as asked."""

    def prepare(work, attention, implementation, mesh):
        program = jax.jit(lambda x: x + 1).lower(1.0).compile()
        metrics = {"loss_sum": 64 * loss(mesh), "count": 64.0, "grad_norm": 1.0}
        return training.Step(lambda: metrics, program)

    return prepare


def test_every_mesh_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "prepare", step_without_model(lambda mesh: 3.0))
    lines = tmp_path / "lines.jsonl"
    benchmark.main(["devices", "--devices=2,4", "--rounds=1", *SIZES, f"--json={lines}"])
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    meshes = [("1x1", 1), ("2x1", 2), ("1x2", 2), ("4x1", 4), ("1x4", 4)]
    assert [(r["mesh"], r["devices"]) for r in records] == meshes
    for record in records:
        assert record["loss"] == 3.0 and record["program_bytes"] > 0
        assert record["speedup"] == records[0]["seconds"] / record["seconds"]
        assert record["tokens_per_second"] == 64 / record["seconds"]


def test_a_step_runs_on_a_mesh():
    work = training.Workload(8, 32, 30, heads=2, kv_heads=1, head_size=4, dtype="float32")
    mesh = sharding.make_mesh(1, 2, devices=jax.devices()[:2])
    step = training.prepare(work, "dense", "xla", mesh)
    assert float(step.call()["count"]) == 32


def test_a_mesh_that_does_not_agree_is_not_timed(monkeypatch):
    monkeypatch.setattr(training, "prepare", step_without_model(lambda mesh: mesh.size))
    with pytest.raises(ArithmeticError, match=r"loss of the first step is 2.0 on a mesh of \(2, 1"):
        benchmark.main(["devices", "--devices=2", *SIZES])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--devices=1,9"], f"--devices=9: there are {jax.device_count()}"),
        (["--devices=8", *SIZES], "a multiple of --devices=1,8"),
    ],
)
def test_what_cannot_be_shared_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        benchmark.main(["devices", *flags])
