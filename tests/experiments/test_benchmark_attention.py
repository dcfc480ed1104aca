"""The attention benchmark: its ratios, its inputs, its contenders, and what it says of failures."""

import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import attention, contenders, machine, measure, plot, sizes
from experiments.benchmark.program import Program
from experiments.benchmark.sizes import Draws, Sizes

SMALL = Sizes(2, 48, 4, 2, 8, "float32")
CEILINGS = machine.Ceilings(1e9, 1e8)


@pytest.fixture(autouse=True)
def _known_ceilings(monkeypatch):
    monkeypatch.setattr(machine, "measure_ceilings", lambda rounds: CEILINGS)


def test_every_measurement_is_written_with_its_ratios(tmp_path, capsys):
    lines, picture = tmp_path / "lines.jsonl", tmp_path / "picture.svg"
    flags = ["--lengths=32,64", "--tokens=64", "--heads=2", "--kv-heads=1", "--head-size=8"]
    flags += ["--implementations=auto,triton", "--peers=xla,xla:1x16,cudnn", "--rounds=1"]
    benchmark.main(["attention", *flags, f"--json={lines}", f"--plot={picture}"])
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    found = {(r["length"], r["measured"], r["attention"]): r for r in records}
    assert len(found) == len(records) == 2 * 2 * 5
    ran = {"blossom_auto", "dense_xla", "dense_xla:1x16"}
    for (length, measured, name), record in found.items():
        assert record["rows"] * length == 64
        assert {"jax", "device", "commit", "date", "dtype", "heads"} <= record.keys()
        assert (record["error"] is None) == (name in ran)
        assert set(record["speedup"]) == (ran - {name} if name in ran else set())
        for other in record["speedup"]:
            theirs = found[length, measured, other]
            assert record["speedup"][other] == theirs["seconds"] / record["seconds"]
            ratio = theirs["temporary_bytes"] / record["temporary_bytes"]
            assert record["memory_ratio"][other] == ratio
        if name in ran:
            growth = record["temporary_bytes"] / found[32, measured, name]["temporary_bytes"]
            assert record["temporary_bytes_growth"] == growth
            floor = record["floor_bytes"] / 1e9 + record["floor_exponentials"] / 1e8
            assert record["floor_seconds"] == pytest.approx(floor)
            assert record["floor_fraction"] == pytest.approx(floor / record["seconds"])
    printed = capsys.readouterr().out
    assert "temporary MiB" in printed and "vs dense_xla:1x16" in printed
    assert printed.count("dense_cudnn at 32, 64: cuDNN needs an NVIDIA GPU") == 1
    assert printed.count("blossom_triton at 32, 64: Triton needs an NVIDIA GPU") == 1
    assert "Dense, xla (1 x 16)" in picture.read_text()


def _program(call, needed=0):
    return Program(call, temporary_bytes=8, needed_bytes=needed, moved_bytes=1000, exponentials=100,
                   sets=1)  # fmt: skip


def _compare(chosen):
    report = measure.Report("attention")
    attention.compare(chosen, SMALL, "forward", 1, report, CEILINGS)
    return {record["attention"]: record for record in report.records}


def test_one_that_fails_is_reported_and_the_others_run():
    def refuses(*_):
        raise NotImplementedError("no such card")

    def exhausts():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")

    def compiler_runs_out(*_):
        raise MemoryError("compiling")

    found = _compare(
        {
            "refused": refuses,
            "exhausted": lambda *_: _program(exhausts),
            "uncompiled": compiler_runs_out,
            "large": lambda *_: _program(lambda: None, needed=2**62),
            "good": lambda *_: _program(lambda: None),
        }
    )
    assert found["refused"]["error"] == "no such card"
    assert found["exhausted"]["error"].startswith("out of memory: RESOURCE_EXHAUSTED")
    assert found["uncompiled"]["error"] == "out of memory: compiling"
    assert found["large"]["error"].startswith("too large: needs 4,611,686,018,427,387,904 bytes")
    for name in ("exhausted", "large"):  # compiled, so its bytes are known
        assert found[name]["seconds"] is None and found[name]["temporary_bytes"] == 8
        assert found[name]["floor_fraction"] is None
    assert found["good"]["seconds"] > 0 and found["good"]["error"] is None
    assert found["good"]["memory_ratio"] == {"exhausted": 1, "large": 1}
    attention.print_table(list(found.values()))


def test_a_host_keeps_half_of_its_memory_and_a_gpu_none(monkeypatch):
    monkeypatch.setattr(attention.memory, "available_bytes", lambda devices: 100)
    chosen = {"half": lambda *_: _program(lambda: None, needed=60)}
    assert "the limit is 50" in _compare(chosen)["half"]["error"]
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "gpu")
    assert _compare(chosen)["half"]["error"] is None


def test_inputs_together_exceed_any_cache(monkeypatch):
    assert sizes.num_sets(SMALL) == 1
    monkeypatch.setattr(sizes.jax, "default_backend", lambda: "gpu")
    middle = Sizes(64, 1024, 8, 2, 16, "bfloat16")
    *qkv, cotangent = jax.eval_shape(lambda: Draws()(middle, 0))
    size = sum(x.size * x.dtype.itemsize for x in (*qkv, cotangent))
    assert (sizes.num_sets(middle) - 1) * size < 2**28 <= sizes.num_sets(middle) * size
    assert sizes.num_sets(SMALL) == 64
    assert sizes.num_sets(Sizes(1024, 1024, 8, 2, 16, "bfloat16")) == 2


@pytest.mark.parametrize("make", [contenders.blossom("xla"), contenders.dense("xla")])
@pytest.mark.parametrize("measured", contenders.MEASURED)
def test_calls_take_the_sets_in_turn(monkeypatch, make, measured):
    monkeypatch.setattr(sizes, "num_sets", lambda size: 3)
    program = make(SMALL, measured, Draws())
    outs = [np.asarray(jax.tree.leaves(program.call())[0]) for _ in range(6)]
    assert program.sets == 3
    for n in range(3):
        np.testing.assert_array_equal(outs[n], outs[n + 3])
        assert not np.array_equal(outs[n], outs[n + 1])


def test_contenders_attend_to_the_same_arrays():
    draws = Draws()
    by_name = {
        name: contenders.blossom(name)(SMALL, "forward_backward", draws).call()
        for name in ("auto", "xla", "reference")
    }
    for name in ("auto", "xla"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
            by_name[name],
            by_name["reference"],
        )
    out, gradients = contenders.dense("xla")(SMALL, "forward_backward", draws).call()
    q, k, v, cotangent = draws(SMALL, 0)

    def loss(*qkv):
        return jnp.sum(jax.nn.dot_product_attention(*qkv, is_causal=True) * cotangent)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        gradients,
        jax.grad(loss, argnums=(0, 1, 2))(q, k, v),
    )
    assert out.shape == q.shape


def test_floors_count_the_arrays_of_the_call():
    tokens, heads, kv, d = 2 * 48, 4, 2, 8
    qkv = 4 * tokens * (heads + 2 * kv) * d
    out = 4 * tokens * heads * d
    for measured, times in (("forward", 1), ("forward_backward", 2)):
        dense = contenders.dense("xla")(SMALL, measured, Draws())
        blossom = contenders.blossom("xla")(SMALL, measured, Draws())
        gate, positions = 4 * tokens * heads * 2, 4 * tokens
        summary = 4 * 2 * 3 * kv * d
        gradients = times - 1
        assert dense.moved_bytes == times * (qkv + out) + gradients * qkv
        inputs = qkv + gate + positions + summary
        assert blossom.moved_bytes == times * (inputs + out) + gradients * (qkv + gate)
        assert dense.exponentials == times * tokens * heads * 48 / 2


def test_another_split_has_the_same_hidden_size():
    size = Sizes(2, 32, 8, 2, 16, "bfloat16")
    assert size.split(2, 64) == Sizes(2, 32, 2, 1, 64, "bfloat16")
    assert size.split(1, 128) == Sizes(2, 32, 1, 1, 128, "bfloat16")
    assert size.split(16, 8).kv_heads == 4
    out = attention._peer("xla:2x64")(size, "forward", Draws()).call()
    assert out.shape == (2, 32, 2, 64)


def test_torch_runs_or_says_why_not(monkeypatch):
    try:
        import torch  # noqa: F401
    except ImportError:
        with pytest.raises(NotImplementedError, match="PyTorch is not installed"):
            contenders.dense("torch")(SMALL, "forward", Draws())
        return
    draws = Draws()
    ours = contenders.dense("xla")(SMALL, "forward_backward", draws).call()
    pending = contenders.dense("torch")(SMALL, "forward_backward", draws).call()
    theirs = [x.transpose(1, 2).detach().numpy() for x in pending._outputs]
    for a, b in zip(jax.tree.leaves(ours), theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_torch_without_the_gpu_is_refused(monkeypatch):
    blind = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", blind)
    gpu = types.SimpleNamespace(platform="gpu")
    monkeypatch.setattr(contenders.torch_peer.jax, "devices", lambda: [gpu])
    with pytest.raises(NotImplementedError, match="sees no GPU"):
        contenders.torch_peer.prepare(SMALL, "forward", Draws())


def test_the_plot_takes_gaps(tmp_path):
    def record(name, length, seconds):
        return {
            "attention": name, "measured": "forward_backward", "length": length, "rows": 1,
            "heads": 8, "kv_heads": 2, "head_size": 16, "dtype": "float32", "seconds": seconds,
            "temporary_bytes": None,
        }  # fmt: skip

    records = [record("blossom_xla", 64, 0.1), record("dense_xla", 64, None)]
    plot.draw(records, str(tmp_path / "a.png"))
    plot.draw([], str(tmp_path / "b.png"))
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_it_runs_where_only_jax_and_jaxtyping_are(tmp_path):
    absent = ("absl", "flax", "grain", "matplotlib", "ml_collections", "optax", "orbax", "polars")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
from experiments.benchmark import __main__
__main__.main(["gpu-report", "--output", {str(tmp_path)!r}, "--rounds=1", "--tokens=64",
    "--lengths=32", "--training-tokens=32", "--training-lengths=32", "--items=9"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "attention.jsonl").read_text().splitlines()
    assert any(json.loads(line)["seconds"] for line in lines)
    (line,) = (tmp_path / "training.jsonl").read_text().splitlines()
    assert json.loads(line)["error"].startswith("ModuleNotFoundError: import of")
    assert "no plot" in done.stdout
