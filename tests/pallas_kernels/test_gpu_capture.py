"""Kernels taken out of jax: their machine code, and the arrays they read and write."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from gpu_compile import capture, launch
from gpu_compile.case import Case
from gpu_compile.environment import ROOT

import pallas_kernels

FORWARD = ("selection_forward", "list_begins", "blocks_forward", "near_forward")
BACKWARD = ("blocks_backward", "near_queries", "near_keys")


def test_arrays_are_those_of_the_call(tmp_path):
    case = Case(
        "blossom_attention", "triton_interpret", direction="backward", length=48, rows=1, group=1
    )
    capture.write_arrays(case, tmp_path)
    keys = [path.name.removesuffix("_out0.npy") for path in tmp_path.glob("*_out0.npy")]
    assert sorted(keys) == [f"{n}_{name}" for n, name in enumerate(FORWARD + BACKWARD)]

    q, k, v, summary_keys, gate, positions = (
        capture._draw(n, shape) for n, shape in enumerate(case.build(None)[1])
    )
    expected = pallas_kernels.blossom_attention(
        *(q, k, v, summary_keys, gate, positions),
        block_size=case.block_size,
        num_selected=case.num_selected,
        window=case.window,
        implementation="reference",
    )
    outputs = [np.load(path) for path in tmp_path.glob("3_near_forward_out?.npy")]
    found = [x for x in outputs if x.dtype == np.uint16]  # the output, and that of one path
    wanted = capture._as_saved(expected.reshape(found[0].shape))
    assert min(launch.error(x, wanted) for x in found) < 1e-2


def test_machine_code_needs_no_gpu(gpu_compiler, tmp_path):
    del gpu_compiler  # says whether there is a compiler
    command = [sys.executable, "-m", "gpu_compile.capture", "kernels", str(tmp_path)]
    command += ["--only=near_keys", "--length=64", "--rows=1", "--gpu=a100"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (found,) = json.loads((tmp_path / launch.LAUNCHES).read_text())
    assert found["key"] == "6_near_keys" and found["name"] == "near_keys"
    assert found["programs"] == 2 * 64 // 16 and found["threads"] == 32
    assert 0 < found["shared_memory"] < 2**16
    assert (tmp_path / "6_near_keys.cubin").read_bytes().startswith(b"\x7fELF")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_errors_are_shares_of_the_largest(dtype):
    wanted = jnp.asarray([1.0, -4.0, 0.5, 1e30, jnp.inf], dtype)
    found = jnp.asarray([1.0, -4.0, 1.0, 2e30, 0.0], dtype)
    assert launch.error(*map(capture._as_saved, (found, wanted))) == 0.125
    assert launch.error(*map(capture._as_saved, (wanted, wanted))) == 0


def test_what_is_not_a_number_is_an_error():
    assert np.isnan(launch.error(np.float32([np.nan]), np.float32([1.0])))
