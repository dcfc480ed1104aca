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
from pallas_kernels.power_attention.near import BAND_KEYS, NearSizes, band_bias, shift
from pallas_kernels.triton_tools import (
    NOTHING,
    dot,
    exp2,
    fma,
    launch,
    log2,
    read,
    read_tile,
    reciprocal,
    to_matrix,
    write,
)


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
    def of_keys(cls, logits, values, interpret: bool):
        """Starts with a tile of keys: logits [rows, keys], values [keys, D]."""
        highest = jnp.maximum(logits.max(1), MASKED / 2)  # so that masked logits vanish
        weights = exp2(logits - highest[:, None], interpret)
        weighted = dot(weights.astype(values.dtype), values, interpret)
        return cls(highest, weights.sum(1), weighted)

    def add_keys(self, logits, values, interpret: bool):
        """Adds a tile of keys."""
        other = Softmax.of_keys(logits, values, interpret)
        highest = jnp.maximum(self.highest, other.highest)
        fade, weight = (exp2(x.highest - highest, interpret) for x in (self, other))
        faded = self.weighted * fade[:, None]
        weighted = fma(weight[:, None], other.weighted, faded, interpret)
        return Softmax(highest, self.total * fade + other.total * weight, weighted)

    def add(self, logit, value, interpret: bool):
        """Adds one key for each query, or one part of its softmax: logit [rows]."""
        highest = jnp.maximum(self.highest, logit)
        weight, fade = exp2(logit - highest, interpret), exp2(self.highest - highest, interpret)
        faded = self.weighted * fade[:, None]
        weighted = fma(weight[:, None], value.astype(jnp.float32), faded, interpret)
        return Softmax(highest, self.total * fade + weight, weighted)

    def finish(self, interpret: bool):
        """Returns the output and its log-sum-exp; 0 and `NOTHING` where there was no key."""
        some = self.total > 0
        total = jnp.where(some, self.total, 1.0)
        log_total = jnp.where(some, self.highest + log2(total, interpret), NOTHING)
        return self.weighted * reciprocal(total, interpret)[:, None], log_total


def near_forward_kernel(x: Inputs, out, *, sizes: NearSizes, interpret: bool):
    """Attends `sizes.tokens` tokens' query heads of one key/value head.

    `out` has "out" [B * L * H, D] and f32[B * L * H] "long_log_total", "short_log_total", for the
    paths there are, as powers of two; with a gate also "long", "short", the paths' own outputs, and
    the gate's logarithm is taken off the log-sum-exp, so that exp2(logit - it) is the gated weight.
    """
    heads, columns = sizes.heads, x.q.shape[1]
    first, b, g = sizes.place(pl.program_id(0) // sizes.parts)
    part = pl.program_id(0) % sizes.parts
    tile = read_tile(x.positions, first, sizes.tokens, b, g, heads, sizes.members, part)
    real = tile.position >= 0
    q = read(x.q, tile.row, real, columns=columns)
    scale = jnp.float32(sizes.log2_scale)

    def band(n):
        begin = first - sizes.behind + n * BAND_KEYS
        band = read_tile(x.positions, begin, BAND_KEYS, b, g, heads.single)
        real_key = band.position >= 0
        keys, values = (read(ref, band.row, real_key, columns=columns) for ref in (x.k, x.v))
        bias = band_bias(tile.position, tile.token[:, None] - band.token[None, :], sizes)
        scores = dot(q, keys, interpret, transpose_b=True)
        return {name: fma(scores, scale, bias[name], interpret) for name in sizes.paths}, values

    def add_band(n, paths):
        logits, values = band(n)
        return {name: paths[name].add_keys(logits[name], values, interpret) for name in paths}

    def add_shifted(n, short):
        distance = shift(n, sizes)
        rows, seen = tile.key_row - distance * heads.kv_heads, tile.position >= distance
        key = read(x.k, rows, seen, columns=columns).astype(jnp.float32)
        value = read(x.v, rows, seen, columns=columns)
        score = (q.astype(jnp.float32) * key).sum(1)
        logit = fma(score, scale, jnp.where(seen, 0.0, MASKED), interpret)
        return short.add(logit, value, interpret)

    def add_selected(n, long):
        pair = tile.key_row * sizes.num_selected + n
        chosen = read(x.parts.slots, pair, tile.inside, other=-1) >= 0
        row = pair * heads.group + (tile.row - tile.key_row * heads.group)
        logit = read(x.parts.log_total, row, chosen, other=MASKED)
        return long.add(logit, read(x.parts.out, row, chosen, columns=columns), interpret)

    logits, values = band(0)
    paths = {name: Softmax.of_keys(logits[name], values, interpret) for name in sizes.paths}
    if sizes.steps > 1:
        paths = jax.lax.fori_loop(1, sizes.steps, add_band, paths)
    mixed = 0.0
    for n, (name, softmax) in enumerate(paths.items()):
        if name == "short":
            softmax = jax.lax.fori_loop(0, sizes.shifts, add_shifted, softmax)
        elif x.parts:
            softmax = jax.lax.fori_loop(0, sizes.num_selected, add_selected, softmax)
        path, log_total = softmax.finish(interpret)
        if x.gate is None:
            mixed = path
        else:
            gate = read(x.gate, tile.row * 2 + n, real).astype(jnp.float32)
            mixed = fma(gate[:, None], path, jnp.float32(mixed), interpret)
            write(out[name], tile.row, tile.inside, path)
            some = (gate > 0) & (log_total < NOTHING)
            log_gate = log2(jnp.where(some, gate, 1.0), interpret)
            log_total = jnp.where(some, log_total - log_gate, NOTHING)
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
        programs=sizes.programs(q.shape[0]) * sizes.parts,
        interpret=interpret,
        sizes=sizes,
        **sizes.launch,
    )
    return {name: x.reshape(q.shape[: 3 if x.ndim == 1 else 4]) for name, x in found.items()}
