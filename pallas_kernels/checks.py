"""Argument checks shared by the public ops: one clear line, before anything is traced."""

import jax.numpy as jnp

from pallas_kernels.positions import has_block

SELECTION_GRADIENTS = ("none", "straight_through")


def check_positions(q, positions) -> None:
    """Checks that `positions` is an integer array of shape [B, L] for q [B, L, H, D]."""
    if q.ndim != 4:
        raise ValueError(f"q must be [B, L, H, D], got shape {q.shape}")
    if not q.size:
        raise ValueError(f"q must not be empty, got shape {q.shape}")
    if positions.shape != q.shape[:2]:
        raise ValueError(f"positions must be [B, L] = {q.shape[:2]}, got shape {positions.shape}")
    if positions.dtype != jnp.int32:
        raise ValueError(f"positions must be int32, got {positions.dtype}")
    if q.size >= 2**31:
        raise ValueError(f"q has {q.size} elements; offsets are int32, so it must be below 2**31")


def check_qkv(q, k, v, positions) -> None:
    """Checks query, key and value shapes: [B, L, H, D] and twice [B, L, G, D], G divides H."""
    check_positions(q, positions)
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape, got {k.shape} and {v.shape}")
    if k.ndim != 4 or (k.shape[:2], k.shape[3]) != (q.shape[:2], q.shape[3]):
        raise ValueError(f"k must be [B, L, G, D] matching q {q.shape}, got shape {k.shape}")
    check_groups(q, k.shape[2])
    check_floating(q=q)
    if not (q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, k, v must share a dtype, got {q.dtype}, {k.dtype}, {v.dtype}")


def check_groups(q, num_kv_heads: int) -> None:
    """Checks that there are kv heads, and that the query heads divide into them."""
    if num_kv_heads < 1:
        raise ValueError("there must be at least 1 kv head, got 0")
    if q.shape[2] % num_kv_heads:
        raise ValueError(f"query heads {q.shape[2]} must be a multiple of kv heads {num_kv_heads}")


def check_floating(**arrays) -> None:
    """Checks that every named array holds floating-point numbers."""
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be of a floating-point dtype, got {x.dtype}")


def check_summary_keys(q, summary_keys, block_size: int) -> None:
    """Checks summary keys [B, ceil(L/S), G, D] against q."""
    b, length, _, d = q.shape
    slots = -(-length // block_size)
    if summary_keys.ndim != 4 or summary_keys.shape[:2] + summary_keys.shape[3:] != (b, slots, d):
        raise ValueError(
            f"summary_keys must be [B, ceil(L/block_size), G, D] = ({b}, {slots}, G, {d}), "
            f"got shape {summary_keys.shape}"
        )
    check_groups(q, summary_keys.shape[2])
    check_floating(q=q, summary_keys=summary_keys)


def check_slots(q, num_kv_heads: int, slots, probability) -> None:
    """Checks slots int32[B, L, G, N] and probability [B, L, G, N]."""
    want = (*q.shape[:2], num_kv_heads)
    if slots.ndim != 4 or slots.shape[:3] != want or slots.dtype != jnp.int32:
        raise ValueError(
            f"slots must be int32 [B, L, G, N] = ({', '.join(map(str, want))}, N), "
            f"got {slots.dtype} {slots.shape}"
        )
    if probability.shape != slots.shape:
        raise ValueError(f"probability must have slots' shape {slots.shape}: {probability.shape}")


def check_at_least_one(**sizes: int) -> None:
    """Checks that every named size is a positive Python integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")


def check_selection_gradient(selection_gradient: str) -> None:
    """Checks the name of a selection gradient."""
    if selection_gradient not in SELECTION_GRADIENTS:
        raise ValueError(f"{selection_gradient=} must be one of {', '.join(SELECTION_GRADIENTS)}")


def check_max_history(max_history: int | None, length: int) -> int:
    """Returns the static bound on positions: `max_history`, or the row length without one."""
    if max_history is None:
        return length
    check_at_least_one(max_history=max_history)
    return min(max_history, length)


def without_incomplete_blocks(positions, summary_keys, block_size: int):
    """Zeroes summary keys [B, slots, G, D] that nobody may select, whatever they are.

    They reach no output as they are, but gradients, where 0 times NaN is NaN.
    """
    complete = has_block(positions, block_size=block_size)[..., None, None]
    return jnp.where(complete, summary_keys, jnp.zeros((), summary_keys.dtype))


def without_padding(positions, *arrays):
    """Zeroes [B, L, ...] arrays at padding, so that neither content nor gradient counts."""
    real = positions >= 0
    return tuple(jnp.where(real[:, :, None, None], x, jnp.zeros((), x.dtype)) for x in arrays)
