"""Makes a command one process of several, through jax.distributed."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax

from blossom_jax.errors import NonFiniteError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which process of how many this is."""
    group = parser.add_argument_group("several processes, see docs/scaling.md")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join the processes that Slurm, Kubernetes, Open MPI or a TPU pod started",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 can be reached,"
    )
    group.add_argument("--num-processes", type=int, metavar="N", help="how many there are,")
    group.add_argument("--process-id", type=int, metavar="I", help="and which this is, from 0")
    group.add_argument(
        "--heartbeat-seconds",
        type=int,
        default=100,
        metavar="S",
        help="silence after which a process counts as ended; 100 by default",
    )


@contextlib.contextmanager
def joined(arguments: argparse.Namespace) -> Iterator[None]:
    """Joins the other processes before any device is used; ends with them.

    A process that ends in order waits for the others. So one that is left alone, or fails alone,
    says why and ends at once: then the others find out, and do not wait for it either.

    Raises:
      UserError: Flags that do not make sense together, or processes that cannot be reached.
    """
    if not _asked_for(arguments):
        yield
        return
    try:
        jax.distributed.initialize(
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
            cluster_detection_method=None if arguments.distributed else "deactivate",
            heartbeat_timeout_seconds=arguments.heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes were not found: {error}; --coordinator, --num-processes and "
            "--process-id together say where they are"
        ) from error
    try:
        yield
    except (UserError, NonFiniteError):
        raise  # in every process alike
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    except Exception as error:
        print(_reason(error), file=sys.stderr, flush=True)
        os._exit(1)


def _asked_for(arguments: argparse.Namespace) -> bool:
    named = arguments.coordinator, arguments.num_processes, arguments.process_id
    given = [value is not None for value in named]
    if arguments.distributed and any(given) or any(given) and not all(given):
        raise UserError(
            "several processes take either --distributed alone, or --coordinator, --num-processes "
            "and --process-id together"
        )
    if all(given) and not 0 <= arguments.process_id < arguments.num_processes:
        raise UserError(
            f"--process-id={arguments.process_id} must lie in [0, {arguments.num_processes}), "
            "below --num-processes"
        )
    if arguments.heartbeat_seconds < 1:
        raise UserError(
            f"--heartbeat-seconds must be at least 1, got {arguments.heartbeat_seconds}"
        )
    return arguments.distributed or all(given)


def _reason(error: Exception) -> str:
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return "".join(traceback.format_exception(error))
    said = " ".join(str(error).split())[:300]
    me = f"process {jax.process_index()} of {jax.process_count()}"
    if "RESOURCE_EXHAUSTED" in said:
        return f"error: {me} is out of memory: {said}"
    return (
        f"error: {me} stops, as another process seems to have ended; start all of them again to "
        f"resume from the last checkpoint. JAX says: {said}"
    )
