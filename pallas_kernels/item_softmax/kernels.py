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

_LEAST_TILES = 8  # of the other operand, that a program meets
_LOWEST = -1e29  # highest logit so far: above masked ones, so that their weights vanish
_NUM_WARPS = 4


class Cut(NamedTuple):
    """How a kernel's work is cut up.

    Attributes:
      programs: about as many, where there is enough to do, by sharing out the other operand: each
        leaves a part, f32[64, M], of what its rows get.
      num_stages: depth of the pipeline.
    """

    programs: int
    num_stages: int


class Operand(NamedTuple):
    """Rows of a matrix, of which some count.

    Attributes:
      rows: [n, M].
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
      rows: of a program.
      columns: rows of the other operand that it meets at a time.
      shares: programs that share the other operand's rows.
    """

    rows: int
    columns: int
    shares: int

    @classmethod
    def of(cls, own: Operand, other: Operand, most: int) -> "Sizes":
        """Chooses them by the shapes; the tiles were timed at M = 128.

        Args:
          own: of a program.
          other: that it walks.
          most: programs that the shares may make.
        """
        (count, columns), others = own.rows.shape, other.rows.shape[0]
        rows, at_once = 64, 64 if columns <= 128 else 32
        programs, tiles = pl.cdiv(count, rows), pl.cdiv(others, at_once)
        return cls(rows, at_once, max(1, min(most // programs, tiles // _LEAST_TILES)))


class _Rows(NamedTuple):
    """The rows of a program.

    Attributes:
      values: [rows, M]; 0 where they do not count.
      number: int32[rows].
      inside: bool[rows], which of them there are.
      counts: bool[rows], which of those count.
      at: int32[rows], where the result of this share of the other operand is written.
      begin: first tile of that share.
      end: the tile after its last one.
    """

    values: Any
    number: Any
    inside: Any
    counts: Any
    at: Any
    begin: Any
    end: Any


def _read_rows(own: Operand, other: Operand, sizes: Sizes) -> _Rows:
    program, share = (f(pl.program_id(0), sizes.shares) for f in (jax.lax.div, jax.lax.rem))
    first = program * sizes.rows
    number = first + jnp.arange(sizes.rows, dtype=jnp.int32)
    count, columns = own.rows.shape
    counts = (number >= own.bounds[0]) & (number < own.bounds[1])
    first_tile = jax.lax.div(other.bounds[0], sizes.columns)
    end_tile = jax.lax.div(other.bounds[1] + sizes.columns - 1, sizes.columns)
    tiles = jax.lax.div(end_tile - first_tile + sizes.shares - 1, sizes.shares)
    begin = first_tile + share * tiles
    any_counts = (first < own.bounds[1]) & (first + sizes.rows > own.bounds[0])
    end = jnp.where(any_counts, jnp.minimum(begin + tiles, end_tile), begin)
    values, at = read(own.rows, number, counts, columns=columns), share * count + number
    return _Rows(values, number, number < count, counts, at, begin, end)


def _read_tile(other: Operand, n, sizes: Sizes):
    """Reads the n-th tile of the other operand, 0 where its rows do not count; and which do."""
    number = n * sizes.columns + jnp.arange(sizes.columns, dtype=jnp.int32)
    counts = (number >= other.bounds[0]) & (number < other.bounds[1])
    return read(other.rows, number, counts, columns=other.rows.shape[1]), number, counts


def mean_kernel(operands, out, *, sizes: Sizes, interpret: bool):
    """Finds each row's softmax over a share of the other operand's rows.

    Writes "log_total", the log-sum-exp of the products with them, and "mean", their mean under the
    weights that the softmax gives them.
    """
    own, other = operands
    rows = _read_rows(own, other, sizes)

    def add(n, sums):
        highest, total, weighted = sums
        tile, _, counts = _read_tile(other, n, sizes)
        logits = dot(rows.values, tile, interpret, transpose_b=True)
        logits = jnp.where(counts[None, :], logits, MASKED)
        new = jnp.maximum(highest, logits.max(1) * LOG2_E)
        weights = exp2(fma(logits, jnp.float32(LOG2_E), -new[:, None], interpret), interpret)
        shrink = exp2(highest - new, interpret)
        weighted = weighted * shrink[:, None] + dot(weights.astype(tile.dtype), tile, interpret)
        return new, total * shrink + weights.sum(1), weighted

    zero, zeros = (jnp.zeros(x.shape, jnp.float32) for x in (rows.number, rows.values))
    start = zero + _LOWEST, zero, zeros
    highest, total, weighted = jax.lax.fori_loop(rows.begin, rows.end, add, start)
    # Logits that f32 cannot tell apart may lose all weights: the loss is to be NaN then, as it is
    # infinite where a weight overflows.
    lost = (total == 0) & (highest > _LOWEST)
    some = (total != 0) | lost
    total = jnp.where(lost, jnp.nan, jnp.where(some, total, 1.0))
    log_total = (highest + log2(total, interpret)) / LOG2_E
    write(out["log_total"], rows.at, rows.inside, jnp.where(some, log_total, MASKED))
    write(out["mean"], rows.at, rows.inside, weighted / total[:, None])


def weighted_kernel(operands, out, *, sizes: Sizes, interpret: bool):
    """Sums a share of the other operand's rows, weighted with the probabilities, for each row.

    It is the other operand whose softmax that is, and which knows its log-sum-exp.
    """
    own, other = operands
    rows = _read_rows(own, other, sizes)

    def add(n, total):
        tile, number, counts = _read_tile(other, n, sizes)
        shift = read(other.log_total, number, counts, other=NOTHING)[None, :] * LOG2_E
        logits = dot(rows.values, tile, interpret, transpose_b=True)
        weights = exp2(fma(logits, jnp.float32(LOG2_E), -shift, interpret), interpret)
        return total + dot(weights.astype(tile.dtype), tile, interpret)

    start = jnp.zeros(rows.values.shape, jnp.float32)
    total = jax.lax.fori_loop(rows.begin, rows.end, add, start)
    write(out["sum"], rows.at, rows.inside, jnp.where(rows.counts[:, None], total, 0.0))


# Timed for 65,536 tokens and 10,112 rows on an H200.
KERNELS = {
    "mean_embedding": (mean_kernel, Cut(programs=1024, num_stages=3)),
    "weighted_hidden": (weighted_kernel, Cut(programs=3072, num_stages=2)),
}


def launch_for_rows(name: str, own: Operand, other: Operand, shapes, interpret: bool):
    """Launches a kernel that finds something for each row.

    Args:
      name: key of `KERNELS`, and what profilers call it.
      own: the rows.
      other: what each program walks.
      shapes: of what a row gets, by name.
      interpret: as of `launch`.

    Returns:
      f32[shares, n, *shape] by name: a part for each share of the other's rows.
    """
    kernel, cut = KERNELS[name]
    count, sizes = own.rows.shape[0], Sizes.of(own, other, cut.programs)
    parts = launch(
        kernel,
        (own, other),
        {
            key: jax.ShapeDtypeStruct((sizes.shares * count, *shape), jnp.float32)
            for key, shape in shapes.items()
        },
        name=name,
        programs=pl.cdiv(count, sizes.rows) * sizes.shares,
        interpret=interpret,
        sizes=sizes,
        num_warps=_NUM_WARPS,
        num_stages=cut.num_stages,
    )
    return {key: part.reshape(sizes.shares, count, *shapes[key]) for key, part in parts.items()}
