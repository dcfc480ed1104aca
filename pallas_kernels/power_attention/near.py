"""Which keys stand near a query: shared by the kernels, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.power_attention.config import NearTiles
from pallas_kernels.triton_tools import LEAST_TILE, LOG2_E, Heads, Tile, read

KEYS_AT_ONCE = 32  # in one product
PARTS_AT_ONCE = 4
MOST_REGISTERS = 160  # of a thread, for the keys and values that are held at once


@dataclasses.dataclass(frozen=True)
class NearSizes:
    """Static sizes of the kernels of near keys.

    Attributes:
      heads: of the arrays.
      block_size: S, or 0 where the long-term path's own block is left out.
      window: W, or 0 where the short-term path is left out.
      max_history: bound on positions.
      num_selected: N, blocks whose parts are merged in.
      scale: of the logits.
      tiles: how the work is cut up.
      least_tokens: of a tile of keys, which has no more; 0 for a tile of queries.
    """

    heads: Heads
    block_size: int
    window: int
    max_history: int
    num_selected: int
    scale: float
    tiles: NearTiles
    least_tokens: int = 0

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are computed, in the order of the gate's last axis."""
        present = ("long", self.block_size), ("short", self.window)
        return tuple(name for name, size in present if size)

    @property
    def tokens(self) -> int:
        """Tokens of a program's tile."""
        return self.least_tokens or self.tiles.rows // pl.next_power_of_2(self.members)

    @property
    def members(self) -> int:
        """Query heads of a group that a program works on at a time; divides the group."""
        group = self.heads.group
        fitting = (n for n in range(group, 1, -1) if group % n == 0)
        rows = self.tiles.rows // max(1, self.least_tokens)
        return next((n for n in fitting if pl.next_power_of_2(n) <= rows), 1)

    @property
    def head_slices(self) -> int:
        """Slices of so many heads in a group, one after the other or a program each."""
        return self.heads.group // self.members

    @property
    def behind(self) -> int:
        """Tokens before a tile whose keys its queries may attend without looking farther back.

        A multiple of the tile, so no power of two is both above it and within the band.
        """
        farthest = max(self.block_size, self.window) - 1
        return max(1, pl.cdiv(farthest, self.tokens)) * self.tokens

    @property
    def band(self) -> int:
        """Keys of the band: the tile's own tokens and those behind it."""
        return self.behind + self.tokens

    @property
    def first_shift(self) -> int:
        """Least power of two beyond the band."""
        return pl.next_power_of_2(self.behind + 1)

    @property
    def shifts(self) -> int:
        """How many powers of two are beyond the band and below the longest history."""
        return max(0, (self.max_history - 1).bit_length() - self.first_shift.bit_length() + 1)

    @property
    def columns(self) -> int:
        """Keys that a tile of queries meets: the band, then the tile's tokens at each shift."""
        return self.band + (self.tokens * self.shifts if self.window else 0)

    @property
    def parts_at_once(self) -> int:
        """Selected blocks whose parts are read at once."""
        return min(PARTS_AT_ONCE, pl.next_power_of_2(self.num_selected))

    @property
    def part_steps(self) -> int:
        """How many times so many parts are read."""
        return pl.cdiv(self.num_selected, self.parts_at_once)

    @property
    def products(self) -> tuple[tuple[str, ...], ...]:
        """The paths that each product serves: those with keys of the band all, the rest one."""
        return tuple(
            self.paths if begin < self.band else ("short",)
            for begin in range(0, self.columns, KEYS_AT_ONCE)
        )

    def steps(self, k) -> int:
        """Steps in which keys are met: all products at once, or each in a step of a loop.

        Keys that are read ahead of their product are registers, of which wide heads have too few.

        Args:
          k: the keys, for their dtype and columns.
        """
        each = 0.5 if k.dtype == jnp.bfloat16 else 3  # for its products f32 is split in two
        registers = 2 * each * KEYS_AT_ONCE * k.shape[1] / (32 * self.tiles.num_warps)
        count = len(self.products)
        return 1 if count * registers <= MOST_REGISTERS else count

    def holds_reads(self, k) -> bool:
        """Says whether `near_keys` has registers for what it reads until it is multiplied.

        Args:
          k: the keys, for their dtype and columns.
        """
        return k.dtype == jnp.bfloat16 and k.shape[1] <= LEAST_TILE

    def numbers(self, step, steps: int) -> list:
        """Lists the numbers of a step's products."""
        return [step] if steps > 1 else list(range(len(self.products)))

    @property
    def log2_scale(self) -> float:
        """Scale of logits that are powers of two."""
        return self.scale * LOG2_E

    @property
    def launch(self) -> dict[str, int]:
        """Compiler parameters."""
        return {"num_warps": self.tiles.num_warps, "num_stages": self.tiles.num_stages}

    def programs(self, batch: int) -> int:
        """Size of a grid by tiles of tokens and key/value heads."""
        return batch * self.heads.kv_heads * pl.cdiv(self.heads.length, self.tokens)

    def place(self, program):
        """First token, batch row and key/value head of a program's tile."""
        tiles = pl.cdiv(self.heads.length, self.tokens)
        g = (program // tiles) % self.heads.kv_heads
        b = program // (tiles * self.heads.kv_heads)
        return program % tiles * self.tokens, b, g


def over_steps(start, find, merge, steps: int):
    """Merges what `find(step)` gives to `start`; the only step there is needs no merging."""
    if steps == 1:
        return find(0)
    return jax.lax.fori_loop(0, steps, lambda n, merged: merge(merged, find(n)), start)


def read_keys(x, n, place, sizes: NearSizes):
    """Reads the keys of the n-th product of a tile of queries.

    Args:
      x: has refs k and v [B * L * G, D], and positions int32[B * L].
      n: of the product.
      place: first token, batch row and key/value head of the tile.
      sizes: static sizes.

    Returns:
      Keys and values [keys, D]; 0 at padding.
    """
    first, b, g = place
    column = n * KEYS_AT_ONCE + jnp.arange(KEYS_AT_ONCE, dtype=jnp.int32)
    ahead = jnp.maximum(column - sizes.band, 0)
    times, index = jax.lax.div(ahead, sizes.tokens), jax.lax.rem(ahead, sizes.tokens)
    token = jnp.where(column < sizes.band, column - sizes.behind, index - shift(times, sizes))
    token += first
    at = b * sizes.heads.length + token
    inside = (token >= 0) & (token < sizes.heads.length) & (column < sizes.columns)
    real = read(x.positions, at, inside, other=-1) >= 0
    row = at * sizes.heads.kv_heads + g
    return tuple(read(ref, row, real, columns=x.q.shape[1]) for ref in (x.k, x.v))


def read_parts(refs, tile: Tile, slots, n, sizes: NearSizes):
    """Reads what was found for a tile's query heads and some of their selected blocks.

    Args:
      refs: each [pairs * R] or [pairs * R, D], with what stands for no block.
      tile: of queries.
      slots: ref of int32[pairs], -1 for none.
      n: which some.
      sizes: static sizes.

    Returns:
      Of each, [parts, rows] or [parts, rows, D].
    """
    at_once = sizes.parts_at_once
    number = n * at_once + jnp.arange(at_once, dtype=jnp.int32)[:, None]
    pair = tile.key_row[None, :] * sizes.num_selected + number
    inside = tile.inside[None, :] & (number < sizes.num_selected)
    chosen = plgpu.load(slots.at[pair], mask=inside, other=-1) >= 0
    row = pair * sizes.heads.group + (tile.row - tile.key_row * sizes.heads.group)[None, :]
    found = []
    for ref, other in refs:
        at: tuple = (row,)
        mask = chosen
        if len(ref.shape) > 1:
            column = jax.lax.broadcasted_iota(jnp.int32, (*row.shape, ref.shape[1]), 2)
            at = jnp.broadcast_to(row[..., None], column.shape), column
            mask = jnp.broadcast_to(chosen[..., None], column.shape)
        found.append(plgpu.load(ref.at[at], mask=mask, other=other))
    return found


def shift(n, sizes: NearSizes):
    """Returns the n-th distance beyond the band."""
    return jax.lax.shift_left(jnp.full_like(n, sizes.first_shift), n)
