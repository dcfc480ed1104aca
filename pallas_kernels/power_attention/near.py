"""Which keys stand near a query: shared by the kernels, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.masked_softmax import MASKED
from pallas_kernels.power_attention.config import NearTiles
from pallas_kernels.triton_tools import LEAST_TILE, LOG2_E, Heads

BAND_KEYS = 32  # of the band, in one product


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
    """

    heads: Heads
    block_size: int
    window: int
    max_history: int
    num_selected: int
    scale: float
    tiles: NearTiles

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are computed, in the order of the gate's last axis."""
        present = ("long", self.block_size), ("short", self.window)
        return tuple(name for name, size in present if size)

    @property
    def tokens(self) -> int:
        """Tokens of a program's tile."""
        return max(LEAST_TILE, self.tiles.rows // pl.next_power_of_2(self.members))

    @property
    def members(self) -> int:
        """Query heads of a group that a program works on at a time; divides the group."""
        group = self.heads.group
        fitting = (n for n in range(group, 1, -1) if group % n == 0)
        rows = self.tiles.rows // LEAST_TILE
        return next((n for n in fitting if pl.next_power_of_2(n) <= rows), 1)

    @property
    def parts(self) -> int:
        """Parts of so many heads in a group."""
        return self.heads.group // self.members

    @property
    def behind(self) -> int:
        """Tokens before a tile whose keys its queries may attend without looking farther back.

        A multiple of the tile, so no power of two is both above it and within the band.
        """
        farthest = max(self.block_size, self.window) - 1
        return max(1, pl.cdiv(farthest, self.tokens)) * self.tokens

    @property
    def steps(self) -> int:
        """Products in which a tile of queries meets its band: the tile and what is behind it."""
        return pl.cdiv(self.behind + self.tokens, BAND_KEYS)

    @property
    def first_shift(self) -> int:
        """Least power of two beyond the band."""
        return pl.next_power_of_2(self.behind + 1)

    @property
    def shifts(self) -> int:
        """How many powers of two are beyond the band and below the longest history."""
        return max(0, (self.max_history - 1).bit_length() - self.first_shift.bit_length() + 1)

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


def band_bias(position, distance, sizes: NearSizes):
    """Finds what to add to the logits of a band: 0, or `MASKED` where a path does not attend.

    Args:
      position: int32[rows] of query heads, -1 where there is no query.
      distance: int32[rows, keys], of the query from the key.
      sizes: static sizes.

    Returns:
      f32[rows, keys] by path.
    """
    ahead = distance.astype(jnp.uint32)  # a key ahead of its query becomes a great distance
    bias = {}
    if sizes.block_size:
        in_block = jnp.where(position >= 0, jax.lax.rem(position, sizes.block_size), -1)
        bias["long"] = ahead < (in_block + 1).astype(jnp.uint32)[:, None]
    if sizes.window:
        near = (distance < sizes.window) | ((distance & (distance - 1)) == 0)
        bias["short"] = near & (ahead < (position + 1).astype(jnp.uint32)[:, None])
    return {name: jnp.where(allowed, 0.0, MASKED) for name, allowed in bias.items()}


def shift(n, sizes: NearSizes):
    """Returns the n-th distance beyond the band."""
    return jax.lax.shift_left(jnp.int32(sizes.first_shift), jnp.int32(n))
