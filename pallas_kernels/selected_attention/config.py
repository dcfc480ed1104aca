"""How the kernels of selected blocks cut up their work."""

import jax
import jax.numpy as jnp

from pallas_kernels.row_tiles import RowTiles
from pallas_kernels.triton_tools import warps_for


class BlockTiles(RowTiles):
    """Tiles of one kernel of selected blocks."""

    @classmethod
    def forward(cls, keys: int, head_size: int, dtype: jax.typing.DTypeLike) -> "BlockTiles":
        """Chooses tiles by shape for the forward kernel.

        Args:
          keys: of a block, padded.
          head_size: D, padded.
          dtype: of the arrays.
        """
        narrow = dtype == jnp.bfloat16
        wide = max(keys, head_size) * (1 if narrow else 2)
        rows = max(16, 128 * 32 // max(32, wide))  # what shared memory has room for
        elements = max(rows, keys) * max(keys, head_size)
        return cls(rows, warps_for(elements, 32 if narrow else 16, least=2), num_stages=2)

    @classmethod
    def backward(cls, keys: int, head_size: int, dtype: jax.typing.DTypeLike) -> "BlockTiles":
        """Chooses tiles by shape for the backward kernel, likewise.

        Few rows: a warp then needs few registers, so that many wait for memory side by side.
        """
        narrow = dtype == jnp.bfloat16
        wide = max(keys, head_size) * (1 if narrow else 2)
        rows = 32 if wide <= (64 if narrow else 32) else 16  # what shared memory has room for
        elements = max(rows, keys) * max(keys, head_size)
        per_thread = 32 if narrow else 16 if head_size <= 64 else 8
        return cls(rows, warps_for(elements, per_thread, least=1))
