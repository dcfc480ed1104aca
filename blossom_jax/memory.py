"""Refuses sizes that cannot fit, before anything is allocated or written."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from blossom_jax.errors import UserError


def check_fits(
    what: str, bytes_per_device: int, devices: Sequence[jax.Device], *, lower: str
) -> None:
    """Raises if every device of ours is asked for more than it has.

    Args:
      what: Needs the bytes; for the message.
      bytes_per_device: Asked of each device.
      devices: All devices of the mesh.
      lower: What to lower so that fewer bytes are needed; for the message.

    Raises:
      UserError: With the bytes asked for, and those there are.
    """
    ours = [device for device in devices if device.process_index == jax.process_index()]
    available = available_bytes(ours)
    asked = bytes_per_device * (len(ours) if ours[0].platform == "cpu" else 1)
    if asked > available:
        raise UserError(
            f"{what} needs {asked:,} bytes, more than the {available:,} of this "
            f"{'host' if ours[0].platform == 'cpu' else ours[0].device_kind}: "
            f"lower {lower}"
        )


def available_bytes(devices: Sequence[jax.Device]) -> int:
    """Returns the memory of one accelerator, or of the host that CPU devices share."""
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")  # of the container, where there is one
    text = limit.read_text().strip() if limit.is_file() else "max"
    return physical if text == "max" else min(physical, int(text))


def shard_bytes(tree: Any) -> int:
    """Returns the bytes that a tree of ShapeDtypeStructs with shardings takes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes that a compiled program holds at once on one device."""
    plan = compiled.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )
