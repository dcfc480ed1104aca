"""Kernels taken out of jax: their machine code, and the arrays they read and write."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_compile import capture, kernels, launch
from gpu_compile.case import Case
from gpu_compile.environment import ROOT

from pallas_kernels import triton_limits

FORWARD = ("selection_forward", "list_begins", "blocks_forward", "near_forward")
BACKWARD = ("blocks_backward", "near_queries", "near_keys")


def test_arrays_are_what_each_kernel_reads_and_writes(tmp_path):
    case = Case(
        "blossom_attention", "triton_interpret", direction="backward", length=48, rows=1, group=1
    )
    capture.write_arrays(case, tmp_path)
    keys = [path.name.removesuffix("_out0.npy") for path in tmp_path.glob("*_out0.npy")]
    assert sorted(keys) == [f"{n}_{name}" for n, name in enumerate(FORWARD + BACKWARD)]
    for n, call in enumerate(kernels.pallas_calls(*case.build(None))):
        saved = [
            np.load(tmp_path / f"{n}_{call.name}_in{i}.npy") for i in range(len(call.arguments))
        ]
        inputs = [
            x.view(shape.dtype) if x.dtype == np.uint16 else x
            for x, shape in zip(saved, call.arguments, strict=True)
        ]
        for i, output in enumerate(jax.jit(call.launch)(*inputs)):
            wanted = np.load(tmp_path / f"{n}_{call.name}_out{i}.npy")
            np.testing.assert_array_equal(capture._as_saved(output), wanted)


def test_the_last_kernels_write_the_gradient(tmp_path):
    case = Case("power_attention", "triton_interpret", direction="backward", length=48, rows=1)
    capture.write_arrays(case, tmp_path)
    function, shapes = dataclasses.replace(case, implementation="reference").build(None)
    drawn = [capture._draw(n, shape) for n, shape in enumerate(shapes)]
    keys = "1_near_queries", "2_near_keys", "2_near_keys"
    for key, wanted in zip(keys, jax.jit(function)(*drawn), strict=True):
        outputs = [np.load(path) for path in tmp_path.glob(f"{key}_out?.npy")]
        found = [x for x in outputs if x.size == wanted.size]  # near_queries also writes a mean
        saved = capture._as_saved(wanted.reshape(found[0].shape))
        assert min(launch.error(x, saved) for x in found) < 2e-2


def test_rows_in_groups_are_refused(monkeypatch, tmp_path):
    case = Case("blossom_attention", "triton_interpret", length=64, rows=2)
    q, k, *_ = case.build(None)[1]
    of_a_row = triton_limits.row_elements(q, k.shape[2], num_selected=case.num_selected)
    monkeypatch.setattr(triton_limits, "MOST_ELEMENTS", of_a_row)
    with pytest.raises(
        NotImplementedError, match="a kernel inside .*: rows are attended in groups"
    ):
        capture.write_arrays(case, tmp_path)


def test_machine_code_needs_no_gpu(gpu_compiler, tmp_path):
    del gpu_compiler  # says whether there is a compiler
    command = [sys.executable, "-m", "gpu_compile.capture", "kernels", str(tmp_path)]
    command += ["--only=near_keys", "--length=64", "--rows=1", "--gpu=a100"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (found,) = json.loads((tmp_path / launch.LAUNCHES).read_text())
    assert found["key"] == "6_near_keys" and found["name"] == "near_keys"
    assert found["grid"] == [2 * 64 // 16] and found["threads"] == 32
    assert 0 < found["shared_memory"] < 2**16
    assert (tmp_path / "6_near_keys.cubin").read_bytes().startswith(b"\x7fELF")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_errors_are_shares_of_the_largest(dtype):
    def saved(*values):
        return capture._as_saved(jnp.asarray(values, dtype))

    wanted = saved(1.0, -4.0, 0.5, 1e30, jnp.inf)
    assert launch.error(saved(1.0, -4.0, 1.0, 2e30, jnp.inf), wanted) == 0.125
    assert launch.error(wanted, wanted) == 0
    written = np.array([True, True, False, True, True])
    assert launch.error(saved(1.0, -4.0, 9.0, 2e30, jnp.inf), wanted, written) == 0


@pytest.mark.parametrize(("found", "wanted"), [(5.0, 1e30), (1e30, 5.0), (0.0, np.inf)])
def test_nothing_in_one_of_them_alone_is_an_error(found, wanted):
    assert launch.error(np.float32([1, found]), np.float32([1, wanted])) == np.inf


@pytest.mark.parametrize(("found", "wanted"), [(np.nan, 1.0), (5.0, np.nan)])
def test_what_is_not_a_number_is_an_error(found, wanted):
    assert np.isnan(launch.error(np.float32([found]), np.float32([wanted])))
