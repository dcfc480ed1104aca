"""The benchmarks of losses and of the training step: what they compare, report and draw."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import growth, loss, measure, step

SIZES = growth.Sizes(items=50, rows=2, length=8, hidden_size=8, dtype="float32", num_negatives=5)


def _program(sizes):
    """Stands for a contender: the larger the catalogue, the more it holds."""
    x = jnp.ones((sizes.items, sizes.length))
    compiled = jax.jit(lambda x: x @ x.T).lower(x).compile()
    return growth.Program(lambda: compiled(x), compiled)


def _fails(sizes):
    raise NotImplementedError(f"no more than 10 items, got {sizes.items}")


def test_sizes_grow_one_at_a_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "contender", {"plain": _fails, "cross_entropy": _program}.get)
    out, drawn = tmp_path / "out.jsonl", tmp_path / "out.png"
    flags = ["--items=30,40", "--lengths=8,16", "--rows=2", "--rounds=1", "--hidden-size=8"]
    flags += ["--steps=plain,cross_entropy", f"--json={out}", f"--plot={drawn}", "--commit=abc"]
    benchmark.main(["step", *flags])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    sizes = [(30, 8), (40, 8), (30, 16)]
    assert [(r["items"], r["length"]) for r in records[::2]] == sizes
    assert [r["step"] for r in records] == ["plain", "cross_entropy"] * 3
    for record in records[1::2]:
        assert record["seconds"] > 0 and record["error"] is None
        assert record["logits_bytes"] == 2 * record["length"] * record["items"] * 4
        square = 4 * record["items"] ** 2
        assert record["program_bytes"] >= square + 4 * record["items"] * record["length"]
    assert drawn.stat().st_size > 1000
    assert "plain at 40 items, 2 x 8: no more than 10 items, got 40" in capsys.readouterr().out


def test_what_is_too_large_is_not_begun(monkeypatch):
    monkeypatch.setattr(growth.memory, "available_bytes", lambda devices: 2000)
    report = measure.Report("loss")
    growth.compare("loss", {"plain": _program}, SIZES, 1, report)
    assert report.records[0]["error"].endswith("the limit is 1,000")
    assert report.records[0]["seconds"] is None and report.records[0]["program_bytes"] > 1000


def test_contenders_must_fit_together(monkeypatch):
    compiled = _program_with_temporaries(SIZES).compiled
    needed, temporary = growth.memory.program_bytes(compiled), _temporary_bytes(compiled)
    assert temporary > 0
    room = needed + (needed - temporary)  # one runs, the other keeps what it read and wrote
    monkeypatch.setattr(growth.memory, "available_bytes", lambda devices: 2 * room)
    report = measure.Report("loss")
    contenders = dict.fromkeys(("plain", "b", "c"), _program_with_temporaries)
    growth.compare("loss", contenders, SIZES, 1, report)
    assert [bool(record["seconds"]) for record in report.records] == [True, True, False]
    kept = 2 * (needed - temporary)
    assert f"{needed:,} bytes beside {kept:,} of the others" in report.records[2]["error"]


def _program_with_temporaries(sizes):
    x = jnp.ones((sizes.items, sizes.length))
    compiled = jax.jit(lambda x: jnp.sort(x @ x.T, axis=0) @ x).lower(x).compile()
    return growth.Program(lambda: compiled(x), compiled)


def _temporary_bytes(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


def test_plain_and_chunked_cross_entropy_are_one_number():
    found = [loss.contender(name)(SIZES) for name in ("plain", "cross_entropy")]
    for a, b in zip(*(jax.tree.leaves(each.call()) for each in found), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)
    plain, chunked = (each.compiled.as_text() for each in found)
    assert "f32[16,50]" in plain and "f32[16,50]" not in chunked


def test_a_step_trains(monkeypatch):
    # Dense attention compiles faster, and what is tested is the same.
    small = functools.partial(step.ModelConfig, attention="dense", num_layers=1)
    monkeypatch.setattr(step, "ModelConfig", small)
    run = step.contender("cross_entropy+remat")(SIZES).call
    first, second = run(), run()
    assert first["count"] == 16 and second["loss_sum"] != first["loss_sum"]


@pytest.mark.parametrize("name", ["sampled_softmax", "sampled_softmax+lazy"])
def test_the_name_of_a_step_says_whether_it_is_lazy(monkeypatch, name):
    def make_step(make_model, optimizer, loss, *, lazy_items, **rest):
        return lambda batch: types.SimpleNamespace(call=lambda: lazy_items, program=loss.draw)

    monkeypatch.setattr(step.training, "make_step", make_step)
    found = step.contender(name)(SIZES)
    assert found.call() == name.endswith("+lazy")
    assert found.compiled(jax.random.key(0), 16).items.shape == (1, 5)


def test_the_loss_by_xla_is_asked_for_by_its_name():
    def implementation(name):
        return loss.loss_of(name, SIZES).total.keywords["config"].loss_implementation

    assert [implementation(f"cross_entropy{end}") for end in ("", "+xla")] == ["", "xla"]
