"""The clock, the ceilings and the count that the benchmarks stand on."""

import itertools

import jax
import numpy as np
import pytest

from experiments.benchmark import floor, machine, measure
from experiments.benchmark.sizes import Sizes


@pytest.mark.parametrize(("clock", "cpu_time"), [("perf_counter", False), ("process_time", True)])
def test_medians_are_of_the_timed_calls(monkeypatch, clock, cpu_time):
    times = iter([0, 4, 0, 1, 0, 2, 0, 9])  # beginning and end of two timed calls, in two rounds
    monkeypatch.setattr(measure.time, clock, lambda: next(times))
    calls = []
    timed = {"call": lambda: calls.append(1)}
    assert measure.medians(timed, rounds=2, cpu_time=cpu_time) == {"call": 3}
    assert len(calls) == 2 * (1 + 2)


class _Pending:
    def __init__(self, events):
        self.events = events

    def block_until_ready(self):
        self.events.append("wait")


def test_an_accelerator_gets_several_calls_between_waits(monkeypatch):
    # The probe takes 0.02 s, so three calls make a timing; each timing lasts 0.06 and 0.12 s.
    clock = iter([0, 0.02, 1, 1.06, 2, 2.12])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(measure.jax, "default_backend", lambda: "gpu")
    events = []

    def call():
        events.append("call")
        return _Pending(events)

    assert measure.medians({"call": call}, rounds=1) == {"call": pytest.approx(0.03)}
    assert events == ["call", "wait"] * 2 + (["call"] * 3 + ["wait"]) * 2


def test_a_call_that_fails_is_named_and_the_others_go_on():
    turns = itertools.count()

    def fails_later():
        if next(turns) > 3:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 7 bytes")

    failed = {}
    seconds = measure.medians({"bad": fails_later, "good": lambda: None}, 3, failed)
    assert seconds.keys() == {"good"}
    message = "out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes"
    assert failed == {"bad": message}
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        measure.medians({"bad": fails_later}, 1)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotImplementedError("needs a GPU"), "needs a GPU"),
        (MemoryError(), "out of memory: "),
        (RuntimeError("CUDA out of memory."), "out of memory: CUDA out of memory."),
        (TypeError("no"), "TypeError: no"),
    ],
)
def test_reasons_are_one_line(error, text):
    assert measure.reason(error) == text


def test_ratios_say_how_much_more_the_others_take():
    values = {"a": 2.0, "b": 6.0, "c": None}
    assert measure.times_of_others("a", values, ["a", "b", "c", "d"]) == {"b": 3}
    assert measure.times_of_others("c", values, ["a", "b", "c"]) == {}


def test_ceilings_count_both_ways_of_a_copy_and_every_exponential(monkeypatch):
    seconds = {"copy": 0.5, "xla": 0.25, "triton": 0.125}
    monkeypatch.setattr(machine.measure, "medians", lambda calls, *_: dict(seconds))
    copied, computed = 2 * 4 * 2**22, machine._CHAIN * 2**16
    assert machine.measure_ceilings() == (copied / 0.5, computed / 0.125)
    del seconds["triton"]
    assert machine.measure_ceilings().exponentials_per_second == computed / 0.25


def test_the_chain_takes_exponentials_and_stays_in_range():
    x = np.linspace(0.1, 1, 64, dtype=np.float32)
    assert str(jax.make_jaxpr(machine._chain)(x)).count("= exp ") == machine._CHAIN
    np.testing.assert_allclose(machine._chain(x), 0.567143, rtol=1e-5)
    ceilings = machine.measure_ceilings(rounds=1)
    assert 1e7 < ceilings.bytes_per_second < 1e12
    assert 1e6 < ceilings.exponentials_per_second < 1e12


def _keys_seen(length, block=16, chosen=4, window=8):
    """Counts, token by token, the keys of the long-term and of the short-term path."""
    total = 0
    for position in range(length):
        total += block * min(chosen, position // block) + position % block + 1
        distances = set(range(window)) | {2**n for n in range(20)}
        total += sum(distance <= position for distance in distances)
    return total


def test_blossom_exponentials_follow_the_formula_and_the_definition():
    size = Sizes(3, 4096, 8, 2, 16, "float32")
    formula = 3 * 4096 * 8 * (4 * 16 + 16 / 2 + 8 + 9)
    assert floor.blossom_exponentials(size) == formula
    assert formula == pytest.approx(3 * 8 * _keys_seen(4096), rel=0.02)
    trained = Sizes(3, 4096, 8, 2, 16, "float32", selection_gradient="straight_through")
    log_sum = 3 * 4096 * 2 * 4096 / (2 * 16)
    assert floor.blossom_exponentials(trained) == formula + log_sum


def test_a_short_row_counts_no_more_than_its_past():
    size = Sizes(1, 64, 1, 1, 16, "float32")
    assert floor.blossom_exponentials(size) == 64 * (64 / 2 + 8 + 3)
    assert floor.blossom_exponentials(Sizes(1, 1, 1, 1, 16, "float32")) == 0.5 + 1


def test_dense_exponentials_are_half_the_square():
    assert floor.dense_exponentials(Sizes(3, 128, 8, 2, 16, "float32")) == 3 * 8 * 128**2 / 2


def test_bytes_are_each_array_once_in_each_direction():
    def array(n, dtype):
        return jax.ShapeDtypeStruct((n, 2), dtype)

    inputs, out = (array(10, "bfloat16"), array(3, "int32")), array(5, "bfloat16")
    assert floor.moved_bytes(inputs, out) == 40 + 24 + 20
    gradients = [array(10, "bfloat16")]
    assert floor.moved_bytes(inputs, out, gradients) == 2 * (40 + 24 + 20) + 40


def test_the_floor_adds_bytes_and_exponentials():
    assert floor.floor_seconds(100, 30.0, machine.Ceilings(10.0, 5.0)) == 10 + 6
