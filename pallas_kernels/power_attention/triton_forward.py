"""Kernel of the keys near a query: the short-term path, and the long-term path's own block.

The window, the shortest power-of-two distances and the own block all stand within a few tokens of
the query, so both paths read one band of keys and share its logits. Farther powers of two are rows
shifted by a constant. What was computed elsewhere for the selected blocks is merged in at the end,
so one launch finishes either path or both.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.power_attention.attended import attended
from pallas_kernels.power_attention.near import NearSizes, over_steps, read_keys, read_parts
from pallas_kernels.triton_tools import (
    NOTHING,
    Tile,
    dot,
    exp2,
    fma,
    hold,
    launch,
    log2,
    read,
    read_tile,
    reciprocal,
    to_matrix,
    write,
)

LEAST = -1e20  # highest logit where all are masked: above them, so that their weights vanish
LEAST_GATE = 2.0**-60  # a gate of 0 would hide a path's weights, which its own gradient needs


class Parts(NamedTuple):
    """What attention to the selected blocks gave, one block at a time.

    Attributes:
      slots: int32[pairs], pair = ((b * L + token) * G + g) * N + n; -1 for none.
      out: [pairs * R, D] by query head of the group.
      log_total: f32[pairs * R], log-sum-exp of the block's logits, as a power of two.
    """

    slots: Any
    out: Any
    log_total: Any


class NearInputs(NamedTuple):
    """Arrays of the kernel; what a path does not need is None."""

    q: Any
    k: Any
    v: Any
    positions: Any
    gate: Any
    parts: Parts | None


class Softmax(NamedTuple):
    """A softmax over some keys: highest logit, sum of weights, weighted values."""

    highest: Any
    total: Any
    weighted: Any

    @classmethod
    def of_nothing(cls, rows: int, columns: int):
        """Starts a softmax."""
        weighted = jnp.zeros((rows, columns), jnp.float32)
        return cls(jnp.full((rows,), LEAST, jnp.float32), jnp.zeros((rows,), jnp.float32), weighted)

    @classmethod
    def of_keys(cls, products, scale: float, interpret: bool):
        """Takes tiles of keys: scores and which are attended [rows, keys], values [keys, D]."""
        products = [(jnp.where(seen, scores, MASKED), values) for scores, seen, values in products]
        highest = functools.reduce(jnp.maximum, (scores.max(1) for scores, _ in products))
        highest = jnp.maximum(highest * scale, LEAST)
        total = weighted = 0.0
        for scores, values in products:
            shifted = fma(scores, jnp.float32(scale), -highest[:, None], interpret)
            weights = exp2(shifted, interpret)
            total += weights.sum(1)
            weighted += dot(weights.astype(values.dtype), values, interpret)
        return cls(highest, total, weighted)

    @classmethod
    def of_parts(cls, log_totals, out, interpret: bool):
        """Takes softmaxes that were finished: [parts, rows], and outputs [parts, rows, D]."""
        highest = jnp.maximum(log_totals.max(0), LEAST)
        weights = exp2(log_totals - highest[None, :], interpret)
        weighted = (out.astype(jnp.float32) * weights[:, :, None]).sum(0)
        return cls(highest, weights.sum(0), weighted)

    def add(self, other: "Softmax", interpret: bool):
        """Merges with a softmax over other keys."""
        highest = jnp.maximum(self.highest, other.highest)
        fade, weight = (exp2(x.highest - highest, interpret) for x in (self, other))
        faded = self.weighted * fade[:, None]
        weighted = fma(weight[:, None], other.weighted, faded, interpret)
        return Softmax(highest, self.total * fade + other.total * weight, weighted)

    def finish(self, interpret: bool):
        """Returns the output and its log-sum-exp; 0 and `NOTHING` where there was no key."""
        some = self.total > 0
        total = jnp.where(some, self.total, 1.0)
        log_total = jnp.where(some, self.highest + log2(total, interpret), NOTHING)
        return self.weighted * reciprocal(total, interpret)[:, None], log_total


def _selected(parts: Parts, tile: Tile, sizes: NearSizes, interpret: bool):
    """Merges what the selected blocks gave."""
    slots, out, log_totals = parts

    def some(n):
        refs = (log_totals, MASKED), (out, 0.0)
        log_total, part = read_parts(refs, tile, slots, n, sizes)
        return Softmax.of_parts(log_total, part, interpret)

    return jax.lax.fori_loop(
        1, sizes.part_steps, lambda n, softmax: softmax.add(some(n), interpret), some(0)
    )


def near_forward_kernel(x: NearInputs, out, *, sizes: NearSizes, interpret: bool):
    """Attends `sizes.tokens` tokens' query heads of one key/value head.

    `out` has "out" [B * L * H, D] and f32[B * L * H] "long_log_total", "short_log_total", for the
    paths there are, as powers of two; with a gate the long path has its own output too, "long", and
    the gate's logarithm is taken off the log-sum-exp, so that exp2(logit - it) is the gated weight.
    """
    program = pl.program_id(0)
    place, part = sizes.place(program // sizes.head_slices), program % sizes.head_slices
    first, b, g = place
    tile = read_tile(x.positions, first, sizes.tokens, b, g, sizes.heads, sizes.members, part)
    real = tile.position >= 0
    steps = sizes.steps(x.k)

    def read_step(step):
        return [read_keys(x, n, place, sizes) for n in sizes.numbers(step, steps)]

    keys = read_step(0) if steps == 1 else None  # ahead of all other reads
    q = read(x.q, tile.row, real, columns=x.q.shape[1])
    gates = []
    if x.gate is not None:
        gates = [read(x.gate, tile.row * 2 + n, real) for n in range(len(sizes.paths))]
    selected = _selected(x.parts, tile, sizes, interpret) if x.parts else None

    def meet(step):
        products: dict[str, list] = {name: [] for name in sizes.paths}
        for n, tiles in zip(sizes.numbers(step, steps), keys or read_step(step), strict=True):
            key, value = (hold(tile, program) for tile in tiles)
            scores = dot(q, key, interpret, transpose_b=True)
            for name, seen in attended(tile.position, tile.token - first, n, sizes).items():
                products[name].append((scores, seen, value))
        return {
            name: Softmax.of_keys(found, sizes.log2_scale, interpret)
            for name, found in products.items()
        }

    def merge(some, more):
        return {name: some[name].add(more[name], interpret) for name in some}

    start = {name: Softmax.of_nothing(*q.shape) for name in sizes.paths}
    softmaxes = over_steps(start, meet, merge, steps)
    mixed = 0.0
    for n, (name, softmax) in enumerate(softmaxes.items()):
        if name == "long" and selected:
            softmax = softmax.add(selected, interpret)
        path, log_total = softmax.finish(interpret)
        if x.gate is None:
            mixed = path
        else:
            gate = hold(gates[n], program).astype(jnp.float32)
            mixed = fma(gate[:, None], path, jnp.float32(mixed), interpret)
            log_gate = log2(jnp.maximum(gate, LEAST_GATE), interpret)
            log_total = jnp.where(log_total < NOTHING, log_total - log_gate, NOTHING)
        if name in out:
            write(out[name], tile.row, tile.inside, path)
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
      "out" and, with a gate and both paths, "long" [B, L, H, D]; log-sum-exps f32[B, L, H].
    """
    shape = jax.ShapeDtypeStruct(to_matrix(q).shape, q.dtype)
    outputs = {"out": shape}
    if gate is not None and "long" in sizes.paths:
        outputs["long"] = shape
    totals = jax.ShapeDtypeStruct(shape.shape[:1], jnp.float32)
    outputs |= {f"{name}_log_total": totals for name in sizes.paths}
    found = launch(
        near_forward_kernel,
        NearInputs(
            to_matrix(q),
            to_matrix(k),
            to_matrix(v),
            positions.reshape(-1),
            None if gate is None else gate.reshape(-1),
            parts,
        ),
        outputs,
        name="near_forward",
        programs=sizes.programs(q.shape[0]) * sizes.head_slices,
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
    return {name: x.reshape(q.shape[: 3 if x.ndim == 1 else 4]) for name, x in found.items()}
