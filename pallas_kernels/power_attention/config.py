"""How the kernels of near keys cut up their work."""

import jax
import jax.numpy as jnp

from pallas_kernels.row_tiles import RowTiles
from pallas_kernels.triton_tools import warps_for


class NearTiles(RowTiles):
    """Tiles of one kernel of near keys."""

    @classmethod
    def by_queries(cls, head_size: int, dtype: jax.typing.DTypeLike) -> "NearTiles":
        """Chooses tiles by shape for kernels that walk the queries.

        The fewest rows of a product, in one warp if registers have room: each token meets keys of
        its own beyond the band, so a larger tile would multiply more that is masked.

        Args:
          head_size: D, padded.
          dtype: of the arrays.
        """
        per_thread = 32 if dtype == jnp.bfloat16 else 8
        return cls(16, warps_for(32 * head_size, per_thread, least=1))

    @classmethod
    def by_keys(cls, head_size: int, dtype: jax.typing.DTypeLike) -> "NearTiles":
        """Chooses tiles by shape for the kernel that walks the keys.

        Up to 32 query heads, in f32 no more than 16; in one warp if registers have room.

        Args:
          head_size: D, padded.
          dtype: of the arrays.
        """
        if dtype != jnp.bfloat16:
            return cls(16, warps_for(16 * head_size, 8, least=1))
        rows = 32 if head_size <= 64 else 16
        return cls(rows, warps_for(rows * head_size, 32 if head_size <= 16 else 16, least=1))
