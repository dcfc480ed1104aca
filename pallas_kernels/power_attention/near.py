"""Which keys stand near a query: shared by the kernels, forward and backward."""

import dataclasses
import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.power_attention.config import NearTiles
from pallas_kernels.power_attention.xla import allowed_distances
from pallas_kernels.triton_tools import LEAST_TILE, Heads, Tile


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
        """Tokens in a program's tile."""
        return max(LEAST_TILE, self.tiles.rows // self.heads.padded_group)

    @property
    def keys(self) -> int:
        """Tokens on the other side of one product."""
        return min(self.tiles.keys, self.tokens)

    @property
    def behind(self) -> int:
        """Tokens before the tile that its band covers: all distances up to this are in it."""
        farthest = max(self.block_size, self.window) - 1
        return max(1, -(-farthest // self.keys)) * self.keys

    @functools.cached_property
    def distances(self) -> tuple[int, ...]:
        """Powers of two beyond the band."""
        listed = allowed_distances(self.window or 1, True, self.max_history)
        return tuple(d for d in listed if d > self.behind)

    @property
    def launch(self) -> dict[str, int]:
        """Compiler parameters."""
        return {"num_warps": self.tiles.num_warps, "num_stages": self.tiles.num_stages}

    def programs(self, batch: int) -> int:
        """Size of the grid."""
        return batch * self.heads.kv_heads * pl.cdiv(self.heads.length, self.tokens)

    def place(self, program):
        """First token, batch row and key/value head of a program's tile."""
        tiles = pl.cdiv(self.heads.length, self.tokens)
        g = (program // tiles) % self.heads.kv_heads
        b = program // (tiles * self.heads.kv_heads)
        return program % tiles * self.tokens, b, g


def token_range(first, size: int):
    """Lists `size` tokens from `first` on."""
    return first + jnp.arange(size, dtype=jnp.int32)


def allowed_near(path: str, query: Tile, key_token, sizes: NearSizes):
    """Marks which keys of the band each query attends on a path: bool[rows, keys]."""
    distance = query.token[:, None] - key_token[None, :]
    position = query.position[:, None]
    if path == "long":
        return (distance >= 0) & (distance <= position % sizes.block_size) & (position >= 0)
    power = (distance & (distance - 1)) == 0
    within = (distance < sizes.window) | (power & (distance <= sizes.behind))
    return (distance >= 0) & (distance <= position) & within
