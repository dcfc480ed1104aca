"""Times by kernel, from traces as jax's profiler writes them."""

import pytest

from blossom_jax.errors import UserError
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import kernels


def names(pid, process, threads):
    """Returns the events that name a process and its threads, which are numbered from 1."""
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}}
    for tid, thread in enumerate(threads, 1):
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": thread}}


def ran(pid, tid, name, microseconds):
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": 0, "dur": microseconds}


EVENTS = [
    *names(7, "/device:GPU:0 (H200)", ["Stream #12(Compute)", "XLA Ops"]),
    *names(9, "/host:CPU", ["python"]),
    ran(7, 1, "near_keys", 1500),
    ran(7, 1, "near_keys", 300),
    ran(7, 1, "radix_sort(void)", 50),
    ran(7, 1, "blocks_forward", 700),
    ran(7, 2, "near_keys", 10_000),  # the same again, as an operation of the program
    ran(9, 1, "near_forward", 10_000),
    {},  # the last event of a trace is empty
]


def test_what_ran_on_streams_is_added_up_by_kernel():
    found = kernels.by_kernel(EVENTS)
    assert list(found) == ["blocks_forward", "near_keys", "others"]
    assert found == pytest.approx({"blocks_forward": 0.7, "near_keys": 1.8, "others": 0.05})


def test_the_table_has_a_column_for_each_kernel_that_ran(capsys):
    record = {"rows": 64, "length": 16384, "seconds": 0.0075}
    other = {"rows": 512, "length": 2048, "seconds": 0.006}
    kernels.print_table(
        [
            record | {"milliseconds": kernels.by_kernel(EVENTS)},
            other | {"milliseconds": {"near_forward": 1.0}},
        ]
    )
    head, first, second = capsys.readouterr().out.strip().splitlines()
    assert head.split()[-7:-3] == ["blocks_forward", "near_forward", "near_keys", "others"]
    assert first.split()[-5:] == ["0.700", "0.000", "1.800", "0.050", "7.500"]
    assert second.split()[-5:] == ["0.000", "1.000", "0.000", "0.000", "6.000"]


def test_without_a_gpu_it_is_refused():
    with pytest.raises(UserError, match="kernels needs a GPU"):
        benchmark.main(["kernels"])
