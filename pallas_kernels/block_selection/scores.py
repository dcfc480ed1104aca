"""The scores of a tile of queries against a tile of slots: shared by the selection's kernels."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.block_selection.config import SelectionTiles
from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.triton_tools import dot, read

MANTISSA_BITS = 23
MOST_TILE_BITS = 8  # of a mantissa, for the number of a tile
MOST_REPEATS = 0.1  # share of programs that may have to sort anew


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
    def tile_bits(self) -> int:
        """Bits that the number of a tile takes."""
        return (2 * self.tile_pairs - 1).bit_length()

    @property
    def tile_mask(self) -> int:
        """Those bits, all set."""
        return 2**self.tile_bits - 1

    @property
    def rounding(self) -> float:
        """Bound of the relative error of a score whose last bits are a tile's number."""
        return 2.0 ** (self.tile_bits - MANTISSA_BITS)

    @property
    def by_columns(self) -> bool:
        """Whether three of a query's best in one column are rare: see columns.py."""
        threes = math.comb(self.num_selected, 3) / self.tiles.slots**2
        rare = self.tiles.queries * threes <= MOST_REPEATS
        return rare and self.tile_bits <= MOST_TILE_BITS


class Inputs(NamedTuple):
    """Arrays of the kernels.

    Attributes:
      queries: f32[B * L * G, D], the mean of each group, scaled; or all, [B * L * H, D].
      summary_keys: [B * slots * G, D].
      first: int32[B * L], first candidate slot of each token.
      number: int32[B * L], how many candidates follow it.
    """

    queries: Any
    summary_keys: Any
    first: Any
    number: Any


class Queries(NamedTuple):
    """A tile of queries.

    Attributes:
      row: int32[queries], rows of [B * L * G] arrays.
      real: bool[queries], whether there is such a row.
      first: int32[queries], first candidate slot.
      number: int32[queries] of candidates.
      pieces: [queries, D] each; their sum is the mean query, to the last bit of f32.
    """

    row: Any
    real: Any
    first: Any
    number: Any
    pieces: tuple


def place(program, count: int, kv_heads: int):
    """Tells a program its tile of `count` in a row, its batch row and its key/value head."""
    return program % count, program // (count * kv_heads), (program // count) % kv_heads


def read_queries(x: Inputs, first, b, g, sizes: SelectionSizes) -> Queries:
    """Reads a tile of queries and their candidates."""
    token = first + jnp.arange(sizes.tiles.queries, dtype=jnp.int32)
    real = token < sizes.length
    at = b * sizes.length + token
    row = at * sizes.kv_heads + g
    first_slot, number = (read(ref, at, real, other=0) for ref in (x.first, x.number))
    rest = _mean_query(x.queries, row, real & (number > 0), sizes)
    pieces, dtype = [], x.summary_keys.dtype
    for _ in range(1 if dtype == jnp.float32 else 3):
        pieces.append(rest.astype(dtype))
        rest -= pieces[-1].astype(jnp.float32)
    return Queries(row, real, first_slot, number, tuple(pieces))


def _mean_query(ref, row, real, sizes: SelectionSizes):
    """Reads the mean of a group's query heads, scaled: f32[queries, D]."""
    if sizes.members is None:
        return read(ref, row, real, columns=ref.shape[1])
    total = jnp.zeros((row.size, ref.shape[1]), jnp.float32)
    for member in range(sizes.members):
        query = read(ref, row * sizes.members + member, real, columns=ref.shape[1])
        total += query.astype(jnp.float32)
    return total * (1 / sizes.members) * sizes.scale


def read_keys(x: Inputs, first, b, g, sizes: SelectionSizes):
    """Reads a tile of summary keys: their slots, rows, which there are, and values."""
    slot = first + jnp.arange(sizes.tiles.slots, dtype=jnp.int32)
    row = (b * sizes.slots + slot) * sizes.kv_heads + g
    real = slot < sizes.slots
    return slot, row, real, read(x.summary_keys, row, real, columns=x.summary_keys.shape[1])


def scores(queries: Queries, tiles: list, interpret: bool) -> tuple:
    """Scores every query and slot, `MASKED` where it is no candidate: f32[queries, slots] a tile.

    Queries keep all their bits: a choice between near equals must not depend on the dtype. Against
    bf16 keys that takes three bf16 products, each exact.

    Args:
      queries: a tile of them.
      tiles: of slots, int32[slots] with their keys [slots, D].
      interpret: see `launch`.
    """
    found = []
    for _, keys in tiles:
        found.append(dot(queries.pieces[0], keys, interpret, transpose_b=True))
        for piece in queries.pieces[1:]:
            found[-1] += dot(piece, keys, interpret, transpose_b=True)
    first, number = queries.first, queries.number

    def mask(*found):
        places = [slot[None, :] - first[:, None] for slot, _ in tiles]
        seen = [(place >= 0) & (place < number[:, None]) for place in places]
        return tuple(jnp.where(*x, MASKED) for x in zip(seen, found, strict=True))

    first_slot, last_slot = tiles[0][0].min(), tiles[-1][0].max()
    all_candidates = (first.max() <= first_slot) & (last_slot < (first + number).min())
    return jax.lax.cond(all_candidates, lambda *found: found, mask, *found)


def slot_range(queries: Queries, sizes: SelectionSizes):
    """Finds the tiles of slots in which some query of the tile has a candidate: first, end."""
    first, number = queries.first, queries.number
    begin = jnp.where(number > 0, first, sizes.slots).min()
    end = jnp.where(number > 0, first + number, 0).max()
    return begin // sizes.tiles.slots, pl.cdiv(end, sizes.tiles.slots)
