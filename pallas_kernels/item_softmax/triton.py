"""Kernels of the softmax over items.

A program has some rows of one operand and walks those of the other. Rows are tokens or items,
whichever the result is for.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.triton_tools import (
    LOG2_E,
    NOTHING,
    dot,
    exp2,
    fma,
    launch,
    log2,
    read,
    write,
)

_ROWS = 64  # of a program
_COLUMNS = 64  # rows of the other operand at a time, where the hidden size is at most 128
_PROGRAMS = 2048  # to be launched at least, if they find enough to do
_LEAST_STEPS = 8  # of a program
_LAUNCH = {"num_warps": 4, "num_stages": 3}
_LEAST = -1e20  # highest logit so far: above masked ones, so that their weights vanish


class Operand(NamedTuple):
    """Rows of a matrix, of which some count.

    Attributes:
      rows: bf16[n, M].
      bounds: int32[2], from the first row that counts to before the second.
      log_total: f32[n], log-sum-exp over the other operand's rows; None where it is not known.
    """

    rows: Any
    bounds: Any
    log_total: Any = None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static sizes of a kernel.

    Attributes:
      columns: rows of the other operand that a program meets at a time.
      splits: programs that share the other operand's rows.
    """

    columns: int
    splits: int


def launch_for_rows(name: str, kernel, own: Operand, other: Operand, shape, interpret: bool):
    """Launches a kernel; returns a part for each share of the other operand's rows."""
    count, padded = own.rows.shape
    columns = min(_COLUMNS, _COLUMNS * 128 // padded)
    tiles, steps = pl.cdiv(count, _ROWS), pl.cdiv(other.rows.shape[0], columns)
    splits = max(1, min(_PROGRAMS // tiles, steps // _LEAST_STEPS))
    parts = launch(
        kernel,
        (own, other),
        jax.ShapeDtypeStruct((splits * count, *shape), jnp.float32),
        name=name,
        programs=tiles * splits,
        interpret=interpret,
        sizes=Sizes(columns, splits),
        **_LAUNCH,
    )
    return parts.reshape(splits, count, *shape)


def _own_rows(own: Operand, sizes: Sizes):
    """Reads a program's rows; returns also their numbers, which there are, and which count."""
    program = jax.lax.div(pl.program_id(0), sizes.splits)
    row = program * _ROWS + jnp.arange(_ROWS, dtype=jnp.int32)
    inside = row < own.rows.shape[0]
    counts = (row >= own.bounds[0]) & (row < own.bounds[1])
    return read(own.rows, row, counts, columns=own.rows.shape[1]), row, inside, counts


def _steps(own: Operand, other: Operand, sizes: Sizes):
    """Finds a program's share of the tiles of the other operand that have rows that count."""
    program, split = (f(pl.program_id(0), sizes.splits) for f in (jax.lax.div, jax.lax.rem))
    first, end = (own.bounds[n] for n in range(2))
    any_counts = (program * _ROWS < end) & ((program + 1) * _ROWS > first)
    begin = jax.lax.div(other.bounds[0], sizes.columns)
    tiles = jax.lax.div(other.bounds[1] + sizes.columns - 1, sizes.columns) - begin
    share = jax.lax.div(tiles + sizes.splits - 1, sizes.splits)
    begin += split * share
    end = jnp.minimum(begin + share, begin - split * share + tiles)
    return begin, jnp.where(any_counts, end, begin)


def _other_rows(other: Operand, n, sizes: Sizes):
    """Reads the n-th tile of the other operand; returns also its rows' numbers, and which count."""
    row = n * sizes.columns + jnp.arange(sizes.columns, dtype=jnp.int32)
    counts = (row >= other.bounds[0]) & (row < other.bounds[1])
    return read(other.rows, row, counts, columns=other.rows.shape[1]), row, counts


def log_sum_exp_kernel(operands, out, *, sizes: Sizes, interpret: bool):
    """Finds a share of the log-sum-exp of `_ROWS` rows' products with the other operand's."""
    own, other = operands
    mine, row, inside, _ = _own_rows(own, sizes)

    def add(n, sums):
        highest, total = sums
        tile, _, counts = _other_rows(other, n, sizes)
        logits = dot(mine, tile, interpret, transpose_b=True)
        logits = jnp.where(counts[None, :], logits, MASKED)
        new = jnp.maximum(highest, logits.max(1) * LOG2_E)
        weights = exp2(fma(logits, jnp.float32(LOG2_E), -new[:, None], interpret), interpret)
        return new, total * exp2(highest - new, interpret) + weights.sum(1)

    begin, end = _steps(own, other, sizes)
    start = jnp.full(row.shape, _LEAST, jnp.float32), jnp.zeros(row.shape, jnp.float32)
    highest, total = jax.lax.fori_loop(begin, end, add, start)
    some = total > 0
    log_total = highest + log2(jnp.where(some, total, 1.0), interpret)
    at = jax.lax.rem(pl.program_id(0), sizes.splits) * own.rows.shape[0] + row
    write(out, at, inside, jnp.where(some, log_total / LOG2_E, MASKED))


def weighted_kernel(operands, out, *, sizes: Sizes, interpret: bool):
    """Sums a share of the other operand's rows, weighted with the probabilities, for `_ROWS` rows.

    One of the operands knows the log-sum-exp: that whose rows are the tokens.
    """
    own, other = operands
    mine, row, inside, counts = _own_rows(own, sizes)
    log_total = None
    if own.log_total is not None:
        log_total = (read(own.log_total, row, counts, other=NOTHING) * LOG2_E)[:, None]

    def add(n, total):
        tile, column, tile_counts = _other_rows(other, n, sizes)
        logits, shift = dot(mine, tile, interpret, transpose_b=True), log_total
        if shift is None:
            found = read(other.log_total, column, tile_counts, other=NOTHING)
            shift = (found * LOG2_E)[None, :]
        weights = exp2(fma(logits, jnp.float32(LOG2_E), -shift, interpret), interpret)
        if log_total is not None:  # else NOTHING has made them 0
            weights = jnp.where(tile_counts[None, :], weights, 0.0)
        return total + dot(weights.astype(tile.dtype), tile, interpret)

    begin, end = _steps(own, other, sizes)
    start = jnp.zeros(mine.shape, jnp.float32)
    total = jax.lax.fori_loop(begin, end, add, start)
    at = jax.lax.rem(pl.program_id(0), sizes.splits) * own.rows.shape[0] + row
    write(out, at, inside, jnp.where(counts[:, None], total, 0.0))
