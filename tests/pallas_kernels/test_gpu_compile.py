"""Kernels compile for GPUs that are not here, to code that can be fast; and what cannot is found.

These are some of the cases; `make gpu-compile` compiles all of them.
"""

import re
import struct

import pytest
from gpu_compile import cases
from gpu_compile.case import Case
from gpu_compile.client import Worker
from gpu_compile.demonstrations import BAD, GOOD, HANGING
from gpu_compile.executable import cubins, unsnappy
from gpu_compile.targets import GPUS

# Kernels that fall short in f32, and so are slower: by the compiler of jax 0.11.2, not of 0.10.2.
SOMETIMES = {
    "blossom_attention-backward-f32-D128-group8-S64-straight_through-h200": {"blocks_backward"},
}
TENSOR_CORE = {"a100": "HMMA", "l4": "HMMA", "h200": "HGMMA", "b200": "UTCHMMA"}


@pytest.mark.parametrize(("case", "gpu"), cases.SUBSET, ids=str)
def test_kernels_suit_the_gpu(gpu_compiler, case, gpu):
    report = gpu_compiler.compile(case, gpu)
    short = {problem.split(":")[0] for problem in report.problems}
    name = f"{case}-{gpu}"
    assert short <= SOMETIMES.get(name, set()), "\n".join(report.problems)


@pytest.mark.parametrize("gpu", TENSOR_CORE)
def test_a_good_kernel_passes(gpu_compiler, gpu):
    report = gpu_compiler.compile(GOOD, gpu)
    (kernel,) = report.kernels
    assert not report.problems, "\n".join(report.problems)
    assert kernel.name == "block_scores" and kernel.threads == 128
    assert 16 <= kernel.registers <= 64
    assert 0 < kernel.shared_memory <= GPUS[gpu].shared_memory_limit
    assert set(kernel.tensor_core) == {TENSOR_CORE[gpu]}


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_kernel_is_found(gpu_compiler, bad):
    (problem,) = gpu_compiler.compile(bad, "a100").problems
    assert re.search(bad.problem, problem)
    assert not gpu_compiler.compile(GOOD, "a100").problems  # the worker has survived it


@pytest.mark.parametrize("program", [GOOD, Case("power_attention")], ids=str)
def test_a_gpu_without_triton_is_refused(gpu_compiler, program):
    report = gpu_compiler.compile(program, "t4")
    assert not report.kernels
    assert all("compute capability" in problem for problem in report.problems) and report.problems


def test_a_program_for_a_gpu_without_triton_is_refused_when_lowered(gpu_compiler):
    (failure,) = gpu_compiler.compile(Case("power_attention"), "t4", "memory").failures
    reason = "NotImplementedError: Triton needs compute capability 8.0, this GPU has 7.5"
    assert failure.splitlines()[0].endswith(reason)


def test_a_compiler_that_hangs_is_ended(gpu_compiler, monkeypatch):
    monkeypatch.setenv("GPU_COMPILE_TIMEOUT", "1")
    with Worker() as worker:
        assert worker.compile(HANGING, "a100").problems == ["hang: took longer than 1 seconds"]


def test_a_kernel_is_the_same_alone_and_in_its_program(gpu_compiler):
    report = gpu_compiler.compile(Case("power_attention", direction="backward"), "h200", "program")
    assert not report.failures and len(report.kernels) > 1
    assert report.memory["temp"] > 0


def test_every_program_has_a_name_of_its_own():
    assert len({str(case) for case in cases.MATRIX}) == len(set(cases.MATRIX)) == len(cases.MATRIX)
    assert all(cases.PROGRAMS[str(case)] == case for case in cases.MATRIX)


def test_snappy_copies_may_overlap():
    literal, copy = bytes([3 << 2]) + b"abcd", bytes([(60 - 1) << 2 | 2, 2, 0])
    block = bytes([0x80 | 304 & 0x7F, 304 >> 7]) + literal + copy * 5
    assert unsnappy(b"?" + block + b"?", 1) == b"abcd" + b"cd" * 150
    with pytest.raises(ValueError, match="reaches before"):
        unsnappy(bytes([0x80 | 304 & 0x7F, 304 >> 7]) + copy * 6)


def test_machine_code_is_found_whatever_the_hashes_beside_it_look_like():
    # An ELF file of 4,096 bytes: a header whose two tables end there, and zeros.
    head = b"\x7fELF\x02".ljust(18, b"\0") + b"\xbe\0".ljust(14, b"\0")
    head += struct.pack("<QQ", 0, 4096) + b"\0" * 16
    elf = head.ljust(4096, b"\0")
    zeros = bytes([63 << 2 | 2, 1, 0]) * 63  # copies of 64 bytes from one byte back
    compressed = bytes([0x80, 32]) + bytes([60 << 2, 63]) + head + zeros
    records = b"s\0" + bytes([0x80, 32]) + compressed
    # Read as Snappy, this hash is a literal that runs over all that follows it.
    rest = 8 - 5 + 32 + len(records)
    misleading = bytes([0x80 | rest & 0x7F, rest >> 7, 61 << 2]) + struct.pack("<H", rest - 1)
    signature = struct.pack("<QQQQQ", 0, 0, 0, ord("s"), 0)
    chunk = misleading.ljust(8, b"\0") + struct.pack("<QQQQ", len(records), 0, ord("r"), 0)
    block = bytes.fromhex("83af70d10d884a3f").ljust(24, b"\0")
    assert list(cubins(b"before" + block + signature + chunk + records + b"after" * 20)) == [elf]
