"""Chooses which implementation of an op runs."""

import functools
import json
import logging
import pathlib
from typing import Any

import jax

from pallas_kernels import capable

NAMES = ("reference", "xla", "triton", "triton_interpret")
_CROSSOVER = pathlib.Path(__file__).with_name("crossover.json")
_log = logging.getLogger(__name__)


def choose(
    op: str,
    implementation: str | None,
    *,
    refusal: str | None,
    max_history: int | None = None,
    device: Any = None,
    shared_memory: int = 0,
) -> str:
    """Returns the name of the implementation that serves `op`.

    A named implementation never looks at devices, so that a program can be compiled for another
    machine. None looks at them, and falls back to "xla", saying why once.

    Args:
      op: the op's name, for messages and for the crossover table.
      implementation: one of `NAMES`, or None for the fastest that runs on the local devices.
      refusal: why the Triton kernels cannot serve these shapes, or None where they can.
      max_history: bound on positions; histories below the measured crossover run elsewhere.
      device: where the program will run; None = on `local_device()`.
      shared_memory: bytes that a program of the Triton kernels needs.

    Raises:
      ValueError: `implementation` is no name at all.
      NotImplementedError: the named implementation cannot serve these shapes.
    """
    if implementation is None:
        return _fastest(op, refusal, max_history, device, shared_memory)
    if implementation not in NAMES:
        raise ValueError(f"{implementation=} must be None or one of {', '.join(NAMES)}")
    if implementation.startswith("triton") and refusal:
        raise NotImplementedError(f"{op} cannot run with {implementation=}: {refusal}")
    return implementation


def _fastest(op: str, refusal: str | None, max_history, device: Any, shared_memory: int) -> str:
    device = device or local_device()
    if device.platform != "gpu":
        return "xla"
    reason = refusal or gpu_refusal(device, shared_memory)
    if reason:
        _say_once(f"{op} runs with implementation='xla': {reason}")
        return "xla"
    if max_history is not None and max_history <= crossover(op):
        return "xla"
    return "triton"


def gpu_refusal(device: Any = None, shared_memory: int = 0) -> str | None:
    """Says why a GPU, or the local one, cannot run Triton kernels; None if it can.

    Args:
      device: None = `local_device()`.
      shared_memory: bytes that a program of the kernels needs.
    """
    return capable.refusal(device or local_device(), shared_memory)


def local_device() -> Any:
    """Returns where programs run unless told otherwise: `jax.default_device`, or the first."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if chosen is None or isinstance(chosen, str):
        return jax.local_devices(backend=chosen)[0]
    return chosen


def needs_clean_padding(name: str) -> bool:
    """Tells whether what stands at padding would reach results; in Triton kernels it does not."""
    return not name.startswith("triton")


@functools.cache
def crossover(op: str) -> int:
    """Returns the longest history at which "xla" was measured to be faster, 0 if there is none."""
    return json.loads(_CROSSOVER.read_text())["longest_xla_history"].get(op, 0)


@functools.cache
def _say_once(message: str) -> None:
    _log.warning(message)
