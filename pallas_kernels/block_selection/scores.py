"""The scores of a tile of queries against a tile of slots: shared by the selection's kernels."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.block_selection.config import SelectionTiles
from pallas_kernels.masked_softmax import at_least_f32
from pallas_kernels.triton_tools import dot, read, write

BF16_BITS = -(2**16)  # those of f32 that bf16 has
BOUND_ROUNDING = 1.01  # far above what the rounding of sums of products comes to
MOST_SLOT_BITS = 13  # of a key, for the number of its slot
MOST_REPEATS = (
    0.1  # share of programs that may have to sort anew; a key of another scale makes more
)


@dataclasses.dataclass(frozen=True)
class SelectionSizes:
    """Static sizes of the selection's kernels.

    Attributes:
      length: L, tokens in a row of the batch.
      slots: summary keys in a row.
      kv_heads: G.
      block_size: S.
      num_selected: N.
      tiles: how the work is cut up.
      members: query heads whose mean is to be taken; None where it was taken before, and scaled.
      scale: of the mean that is to be taken.
    """

    length: int
    slots: int
    kv_heads: int
    block_size: int
    num_selected: int
    tiles: SelectionTiles
    members: int | None = None
    scale: float = 1.0

    @property
    def launch(self) -> dict[str, int]:
        """Compiler parameters."""
        return {"num_warps": self.tiles.num_warps, "num_stages": self.tiles.num_stages}

    @property
    def tile_pairs(self) -> int:
        """Pairs of tiles of slots."""
        return pl.cdiv(self.slots, 2 * self.tiles.slots)

    @property
    def slot_bits(self) -> int:
        """Bits that the number of a slot takes."""
        return (2 * self.tile_pairs * self.tiles.slots - 1).bit_length()

    @property
    def by_columns(self) -> bool:
        """Whether three of a query's best in one column are rare: see columns.py."""
        threes = math.comb(self.num_selected, 3) / self.tiles.slots**2
        rare = self.tiles.queries * threes <= MOST_REPEATS
        return rare and self.slot_bits <= MOST_SLOT_BITS


class ScoreInputs(NamedTuple):
    """Arrays of the kernels.

    Attributes:
      queries: f32[B * L * G, D], the mean of each group, scaled; or all, [B * L * H, D].
      summary_keys: [B * slots * G, D].
      first: int32[B * L], first candidate slot of each token.
      number: int32[B * L], how many candidates follow it.
      largest: f32[B * G], the largest entry of a head's summary keys; None where none is asked for.
    """

    queries: Any
    summary_keys: Any
    first: Any
    number: Any
    largest: Any = None


class Queries(NamedTuple):
    """A tile of queries.

    Attributes:
      row: int32[queries], rows of [B * L * G] arrays.
      real: bool[queries], whether there is such a row.
      first: int32[queries], first candidate slot.
      number: int32[queries] of candidates.
      pieces: [queries, D] each; their sum is the mean query, to the last bit of f32.
      bound: f32[queries], that no score exceeds in absolute value; None where
        `ScoreInputs.largest` is.
    """

    row: Any
    real: Any
    first: Any
    number: Any
    pieces: tuple
    bound: Any


class Slots(NamedTuple):
    """The slots of a tile of queries, int32 each.

    Attributes:
      begin: first slot that some query may select.
      end: their end.
      all_from: first slot that every query may select.
      all_to: their end.
    """

    begin: Any
    end: Any
    all_from: Any
    all_to: Any


def place(count: int, kv_heads: int, *, last_first: bool):
    """Tells this program its tile of `count` in a row, its batch row and its key/value head.

    Equal tiles of all rows come together, those first that have the most to do where a row is one
    sequence: the last queries, which have the most candidates, or the first slots.
    """
    heads = pl.num_programs(0) // count
    tile, head = (f(pl.program_id(0), heads) for f in (jax.lax.div, jax.lax.rem))
    tile = count - 1 - tile if last_first else tile
    return tile, jax.lax.div(head, kv_heads), jax.lax.rem(head, kv_heads)


def read_queries(x: ScoreInputs, first, b, g, sizes: SelectionSizes) -> Queries:
    """Reads a tile of queries and their candidates."""
    token = first + jnp.arange(sizes.tiles.queries, dtype=jnp.int32)
    real = token < sizes.length
    at = b * sizes.length + token
    row = at * sizes.kv_heads + g
    first_slot, number = (read(ref, at, real, other=0) for ref in (x.first, x.number))
    mean, bound = _mean_query(x.queries, row, real, sizes), None
    if x.largest is not None:
        bound = abs(mean).sum(1) * x.largest[b * sizes.kv_heads + g] * BOUND_ROUNDING
    return Queries(row, real, first_slot, number, _pieces(mean, x.summary_keys.dtype), bound)


def _mean_query(ref, row, real, sizes: SelectionSizes):
    """Reads the mean of a group's query heads, scaled: f32[queries, D]."""
    if sizes.members is None:
        return read(ref, row, real, columns=ref.shape[1])
    first, *others = (
        at_least_f32(read(ref, row * sizes.members + n, real, columns=ref.shape[1]))
        for n in range(sizes.members)
    )
    return sum(others, first) * (sizes.scale / sizes.members)


def _pieces(x, dtype) -> tuple:
    """Cuts f32 into tiles of a dtype whose sum it is, to the last bit."""
    if dtype == jnp.float32:
        return (x,)
    pieces = []
    for _ in range(3):
        bits = jax.lax.bitcast_convert_type(x, jnp.int32) & BF16_BITS
        piece = jax.lax.bitcast_convert_type(bits, jnp.float32)
        pieces.append(piece.astype(dtype))
        x -= piece
    return tuple(pieces)


def _key_rows(first, count: int, b, g, sizes: SelectionSizes):
    """Finds `count` summary keys: their slots, rows, and which there are, None if all are."""
    slot = first + jnp.arange(count, dtype=jnp.int32)
    row = (b * sizes.slots + slot) * sizes.kv_heads + g
    return slot, row, slot < sizes.slots if sizes.slots % count else None


def read_keys(x: ScoreInputs, first, b, g, sizes: SelectionSizes):
    """Reads a tile of summary keys: their slots, rows and values."""
    slot, row, real = _key_rows(first, sizes.tiles.slots, b, g, sizes)
    return slot, row, read(x.summary_keys, row, real, columns=x.summary_keys.shape[1])


def _read_keys_across(x: ScoreInputs, first, count: int, b, g, sizes: SelectionSizes):
    """Reads `count` summary keys, transposed: [D, count]."""
    ref = x.summary_keys
    _, row, real = _key_rows(first, count, b, g, sizes)
    column = jax.lax.broadcasted_iota(jnp.int32, (ref.shape[1], count), 0)
    at = jnp.broadcast_to(row[None, :], column.shape), column
    if real is None:
        return plgpu.load(ref.at[at])
    return plgpu.load(ref.at[at], mask=jnp.broadcast_to(real[None, :], column.shape), other=0.0)


def score_slots(
    x: ScoreInputs, queries: Queries, slots, b, g, sizes: SelectionSizes, interpret: bool
):
    """Scores every query and slot, candidate or not: f32[queries, count].

    Args:
      x: arrays.
      queries: a tile of them.
      slots: the first, and how many.
      b: batch row.
      g: key/value head.
      sizes: static sizes.
      interpret: see `launch`.
    """
    first, count = slots
    keys = _read_keys_across(x, first, count, b, g, sizes)
    return products(queries, keys, interpret, transpose=False)


def products(queries: Queries, keys, interpret: bool, *, transpose: bool):
    """Multiplies every query and summary key: f32[queries, slots].

    Queries keep all their bits: a choice between near equals must not depend on the dtype. Against
    bf16 keys that takes three bf16 products, each exact.

    Args:
      queries: a tile of them.
      keys: [D, slots], or [slots, D] to be transposed.
      interpret: see `launch`.
      transpose: whether that is to be done.
    """
    found = dot(queries.pieces[0], keys, interpret, transpose_b=transpose)
    for piece in queries.pieces[1:]:
        found += dot(piece, keys, interpret, transpose_b=transpose)
    return found


def write_choice(ref, queries: Queries, n: int, value, sizes: SelectionSizes) -> None:
    """Writes what belongs to the n-th choice of each query."""
    write(ref, queries.row * sizes.num_selected + n, queries.real, value)


def hide(queries: Queries, slots: Slots, first_slot, found, other):
    """Puts `other` where a query may not select a slot, of those from `first_slot` on."""

    def mask(found):
        slot = jax.lax.broadcasted_iota(jnp.int32, found.shape, 1)
        place = (first_slot - queries.first)[:, None] + slot
        seen = place.astype(jnp.uint32) < queries.number[:, None].astype(jnp.uint32)
        return jnp.where(seen, found, other)

    all_seen = (slots.all_from <= first_slot) & (first_slot + found.shape[1] <= slots.all_to)
    return jax.lax.cond(all_seen, lambda found: found, mask, found)


def slot_range(x: ScoreInputs, first, b, sizes: SelectionSizes) -> Slots:
    """Finds the slots in which queries from `first` on have candidates."""
    # Twice the same where queries are few: a whole warp finds the least in one instruction.
    n = jnp.arange(max(32, sizes.tiles.queries), dtype=jnp.int32)
    token = first + n % sizes.tiles.queries
    at, real = b * sizes.length + token, token < sizes.length
    first_slot, number = (read(ref, at, real, other=0) for ref in (x.first, x.number))
    end = first_slot + number
    return Slots(
        jnp.where(number > 0, first_slot, sizes.slots).min(),
        jnp.where(number > 0, end, 0).max(),
        first_slot.max(),
        end.min(),
    )
