"""The search for tiles."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import pytest

from blossom_jax.errors import UserError
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import measure, tune
from experiments.benchmark.sizes import Sizes
from pallas_kernels import triton_tools

REAL_LAUNCH = triton_tools.launch


@dataclasses.dataclass(frozen=True)
class Tiles:
    rows: int
    num_warps: int = 4


# Seconds of each tile, by rows; 48 does not compile, 64 is wrong, 80 is not a number.
SECONDS = {16: 4.0, 32: 1.0, 48: None, 64: 0.1, 80: 0.2, 96: 2.0}


@pytest.fixture
def launched(monkeypatch):
    calls = []

    def medians(timed, rounds, failed):
        for call in timed.values():
            call()
        return {name: SECONDS[call.rows] for name, call in timed.items()}

    monkeypatch.setattr(measure, "medians", medians)
    return calls


class Launch:
    def __init__(self, tiles):
        self.rows = tiles.rows
        if tiles.rows == 48:
            raise ValueError("too much shared memory")

    def __call__(self):
        out = jnp.ones(4)
        return out, out * {64: 1.1, 80: jnp.nan, 96: 1 + 1e-6}.get(self.rows, 1.0)


def _search(size=None):
    length = size.length if size else 7
    candidates = [Tiles(rows) for rows in SECONDS]
    return tune.Search("near", {"length": length}, Tiles(16), candidates, Launch, 1e-5)


def test_the_fastest_that_is_right_wins(launched, capsys):
    entry = tune.search(_search(), rounds=1)
    assert entry == {
        "kernel": "near",
        "shape": {"length": 7},
        "tiles": {"rows": 32, "num_warps": 4},
        "seconds": 1.0,
        "heuristics": {"rows": 16, "num_warps": 4},
        "heuristics_seconds": 4.0,
        "timed": 3,
        "failed": 3,
    }
    table = capsys.readouterr().out
    assert "rows=16, num_warps=4 (untuned)" in table and "4.00x" in table
    assert "ValueError: too much shared memory" in table
    assert "wrong: relative error 1.0e-01" in table and "wrong: relative error nan" in table


def test_untuned_tiles_that_fail_are_an_error():
    search = dataclasses.replace(_search(), heuristics=Tiles(48))
    with pytest.raises(ValueError, match="shared memory"):
        tune.search(search, rounds=1)


def test_the_data_file_says_where_it_is_from(launched, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(tune.SEARCHES, "near_keys", _search)
    path = tmp_path / "tiles.json"
    options = ["--kernels=near_keys", "--commit=abc", f"--output={path}"]
    benchmark.main(["tune", "--lengths=32,64", *options])
    found = json.loads(path.read_text())
    assert found["provenance"].keys() == {"device", "cores", "jax", "commit", "date"}
    assert found["provenance"]["commit"] == "abc"
    assert [entry["shape"]["length"] for entry in found["tiles"]] == [32, 64]


def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(UserError, match="tune needs a GPU"):
        benchmark.main(["tune", f"--output={tmp_path / 'tiles.json'}"])


@pytest.mark.parametrize("kernel", tune.SEARCHES)
def test_a_kernel_runs_with_the_tiles_that_are_launched(kernel, monkeypatch):
    size = Sizes(rows=1, length=20, heads=2, kv_heads=1, head_size=16, dtype="float32")
    search = tune.kernel_search(kernel, size, "triton_interpret")
    assert all(type(tiles) is type(search.heuristics) for tiles in search.candidates)
    given = []
    for path, module in [*sys.modules.items()]:
        if path.startswith("pallas_kernels.") and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", _spy(given))
    tiles = search.candidates[-1]
    search.launch(tiles)()
    assert [more["num_warps"] for name, more in given if name == kernel] == [tiles.num_warps]


def _spy(given):
    def launch(*args, name, **more):
        given.append((name, more))
        return REAL_LAUNCH(*args, name=name, **more)

    return launch


def test_it_times_what_it_launches():
    calls = []

    def launch(tiles):
        def call():
            calls.append(tiles.rows)
            return jnp.ones(2)

        return call

    search = tune.Search("k", {}, Tiles(16), [Tiles(16), Tiles(32)], launch, 1e-5)
    entry = tune.search(search, rounds=2)
    assert calls.count(16) == 1 + 2 * 3 and calls.count(32) == 1 + 2 * 3
    assert entry["seconds"] <= entry["heuristics_seconds"]


def test_relative_error_is_of_the_worst_array():
    expected = {"a": jnp.full(4, 2.0), "b": jnp.zeros(3)}
    found = {"a": jnp.full(4, 2.2), "b": jnp.zeros(3)}
    assert tune.relative_error(found, expected) == pytest.approx(0.1, rel=1e-4)
    found["b"] = jnp.array([0.0, jnp.nan, 0.0])
    error = tune.relative_error(found, expected)
    assert error != error
