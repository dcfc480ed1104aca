"""Kernel of the keys near a query: the short-term path, and the long-term path's own block.

The window, the shortest power-of-two distances and the own block all stand within a few tokens of
the query, so both paths read one band of keys and share its logits. Farther powers of two are rows
shifted by a constant. What was computed elsewhere for the selected blocks is merged in at the end,
so one launch finishes either path or both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.power_attention.near import NearSizes, allowed_near, token_range
from pallas_kernels.triton_tools import (
    NOTHING,
    dot,
    key_rows,
    launch,
    query_tile,
    read,
    to_matrix,
    write,
)


class Parts(NamedTuple):
    """What attention to the selected blocks gave, one block at a time.

    Attributes:
      slots: int32[pairs], pair = ((b * L + token) * G + g) * N + n; -1 for none.
      out: [pairs * R, D] by query head of the group.
      log_total: f32[pairs * R], log-sum-exp of the block's logits.
    """

    slots: Any
    out: Any
    log_total: Any


class Inputs(NamedTuple):
    """Arrays of the kernel; what a path does not need is None."""

    q: Any
    k: Any
    v: Any
    positions: Any
    gate: Any
    parts: Parts | None


class Softmax(NamedTuple):
    """A softmax over the keys seen so far: highest logit, sum of weights, weighted values."""

    highest: Any
    total: Any
    weighted: Any

    @classmethod
    def empty(cls, rows: int, columns: int):
        """Starts before the first key."""
        return cls(
            jnp.full((rows,), MASKED, jnp.float32),
            jnp.zeros((rows,), jnp.float32),
            jnp.zeros((rows, columns), jnp.float32),
        )

    def add_keys(self, logits, allowed, values, interpret: bool):
        """Adds a tile of keys: logits [rows, keys], values [keys, D]."""
        logits = jnp.where(allowed, logits, MASKED)
        highest = jnp.maximum(self.highest, logits.max(1))
        weight = jnp.where(allowed, jnp.exp(logits - highest[:, None]), 0.0)
        fade = jnp.exp(self.highest - highest)
        weighted = dot(weight.astype(values.dtype), values, interpret)
        return Softmax(
            highest, self.total * fade + weight.sum(1), self.weighted * fade[:, None] + weighted
        )

    def add_one(self, logit, allowed, value):
        """Adds one key for each query, or one part of its softmax: logit [rows], value [rows, D]."""
        logit = jnp.where(allowed, logit, MASKED)
        highest = jnp.maximum(self.highest, logit)
        weight = jnp.where(allowed, jnp.exp(logit - highest), 0.0)
        fade = jnp.exp(self.highest - highest)
        return Softmax(
            highest,
            self.total * fade + weight,
            self.weighted * fade[:, None] + weight[:, None] * value.astype(jnp.float32),
        )

    def finish(self):
        """Returns the output and its log-sum-exp; 0 and `NOTHING` where there was no key."""
        some = self.total > 0
        total = jnp.where(some, self.total, 1.0)
        log_total = jnp.where(some, self.highest + jnp.log(total), NOTHING)
        return self.weighted / total[:, None], log_total


def near_forward_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Attends `sizes.tokens` tokens' query heads of one key/value head.

    `out` has "out" [B * L * H, D] and f32[B * L * H] "long_log_total", "short_log_total", for the
    paths there are; with a gate also "long", "short", the paths' own outputs, and the logarithm of
    the gate is taken off the log-sum-exp, so that exp(logit - it) is the gated weight.
    """
    heads, columns = sizes.heads, x.q.shape[1]
    first, b, g = sizes.place(pl.program_id(0))
    tile = query_tile(x.positions, first, sizes.tokens, b, g, heads)
    q = read(x.q, tile.row, tile.real, columns=columns)
    paths = {name: Softmax.empty(tile.row.size, columns) for name in sizes.paths}

    def band(n, paths):
        token = token_range(first - sizes.behind + n * sizes.keys, sizes.keys)
        real = (token >= 0) & (token < heads.length)
        rows = key_rows(token, b, g, heads)
        keys, values = (read(ref, rows, real, columns=columns) for ref in (x.k, x.v))
        logits = dot(q, keys, interpret, transpose_b=True) * sizes.scale
        return {
            name: softmax.add_keys(
                logits, allowed_near(name, tile, token, sizes), values, interpret
            )
            for name, softmax in paths.items()
        }

    paths = jax.lax.fori_loop(0, (sizes.behind + sizes.tokens) // sizes.keys, band, paths)
    if "short" in paths:
        wide = q.astype(jnp.float32)
        for distance in sizes.distances:
            allowed = tile.position >= distance
            rows = key_rows(tile.token - distance, b, g, heads)
            keys, values = (read(ref, rows, allowed, columns=columns) for ref in (x.k, x.v))
            logit = (wide * keys.astype(jnp.float32)).sum(1) * sizes.scale
            paths["short"] = paths["short"].add_one(logit, allowed, values)
    for n in range(sizes.num_selected if x.parts else 0):
        pair = (tile.row // heads.group) * sizes.num_selected + n
        chosen = tile.real & (read(x.parts.slots, pair, tile.real, other=-1) >= 0)
        row = pair * heads.group + tile.row % heads.group
        value = read(x.parts.out, row, chosen, columns=columns)
        logit = read(x.parts.log_total, row, chosen)
        paths["long"] = paths["long"].add_one(logit, chosen, value)

    mixed = jnp.zeros((tile.row.size, columns), jnp.float32)
    for n, (name, softmax) in enumerate(paths.items()):
        path, log_total = softmax.finish()
        if x.gate is None:
            mixed = path
        else:
            gate = read(x.gate, tile.row * 2 + n, tile.real).astype(jnp.float32)
            mixed += gate[:, None] * path
            write(out[name], tile.row, tile.inside, path)
            some = (gate > 0) & (log_total < NOTHING)
            log_total = jnp.where(some, log_total - jnp.log(jnp.where(some, gate, 1.0)), NOTHING)
        write(out[f"{name}_log_total"], tile.row, tile.inside, log_total)
    write(out["out"], tile.row, tile.inside, mixed)


def near_forward(q, k, v, positions, gate, parts: Parts | None, sizes: NearSizes, interpret: bool):
    """Launches `near_forward_kernel`.

    Args:
      q: [B, L, H, D].
      k: [B, L, G, D].
      v: [B, L, G, D].
      positions: int32[B, L].
      gate: [B, L, H, 2], or None for one path alone.
      parts: what the selected blocks gave, if there are any.
      sizes: sizes and tiles.
      interpret: see `launch`.

    Returns:
      "out" and, with a gate, "long" and "short" [B, L, H, D]; log-sum-exps f32[B, L, H].
    """
    shape = jax.ShapeDtypeStruct(to_matrix(q).shape, q.dtype)
    outputs = {"out": shape} | ({name: shape for name in sizes.paths} if gate is not None else {})
    totals = jax.ShapeDtypeStruct(shape.shape[:1], jnp.float32)
    outputs |= {f"{name}_log_total": totals for name in sizes.paths}
    found = launch(
        near_forward_kernel,
        Inputs(
            to_matrix(q),
            to_matrix(k),
            to_matrix(v),
            positions.reshape(-1),
            None if gate is None else gate.reshape(-1),
            parts,
        ),
        outputs,
        name="near_forward",
        programs=sizes.programs(q.shape[0]),
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
    return {name: x.reshape(q.shape[: 3 if x.ndim == 1 else 4]) for name, x in found.items()}
