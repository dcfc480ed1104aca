"""Summary keys: what the long-term path knows of a block before it selects one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from blossom_jax import layers
from blossom_jax.config import ModelConfig


class KeyCompressor(nnx.Module):
    """Compresses every complete block's rotated keys into one summary key (arXiv 2512.13368)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        window, d = config.compress_block_size, config.head_size
        self.config = config
        self.intra_block_positions = nnx.Param(jnp.zeros((config.num_kv_heads, window, d)))
        self.hidden = layers.linear(window * d, window * d, config, rngs=rngs)
        self.out = layers.linear(window * d, d, config, rngs=rngs)

    def __call__(
        self, k: Float[Array, "B L G D"], positions: Int[Array, "B L"]
    ) -> Float[Array, "B slots G D"]:
        """Returns `summary_keys` with this module's parameters."""
        return summary_keys(
            k,
            positions,
            *self._parameters(k.dtype),
            block_size=self.config.selection_block_size,
            stride=self.config.compress_stride,
        )

    @property
    def span(self) -> int:
        """Tokens that a summary key is made of: a block, and what its windows read before it."""
        config = self.config
        earlier = config.compress_block_size - config.compress_stride
        return config.selection_block_size + earlier

    def block_key(self, tokens: Float[Array, "B G span D"]) -> Float[Array, "B G D"]:
        """Compresses one block of each row.

        Args:
          tokens: The last `span` rotated keys up to the block's end, zero where there are none.
        """
        return _compress_blocks(
            tokens,
            *self._parameters(tokens.dtype),
            block_size=self.config.selection_block_size,
            stride=self.config.compress_stride,
        )

    def _parameters(self, dtype):
        positions = self.intra_block_positions[...].astype(dtype)
        return positions, lambda windows: self.out(nnx.relu(self.hidden(windows)))


def is_compressor_parameter(path: tuple) -> bool:
    """Tells by a path of `jax.tree_util` whether it leads to a parameter of a `KeyCompressor`.

    With `selection_gradient="none"` these get no gradient, and must get no weight decay either.
    """
    return any(getattr(entry, "key", entry) == "compressor" for entry in path)


def summary_keys(
    k: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    intra_block_positions: Float[Array, "G l D"],
    compress: Callable[[Float[Array, "*n lD"]], Float[Array, "*n D"]],
    *,
    block_size: int,
    stride: int,
) -> Float[Array, "B slots G D"]:
    """Compresses the keys of every complete block into one key, in time and memory linear in L.

    A block of `block_size` tokens is compressed through windows of l tokens that end `stride`,
    2 `stride`, ... tokens after its begin and may reach back over its sequence's earlier blocks,
    as zeros before its first token. The summary key is the mean over these windows.

    Args:
      k: Rotated keys.
      positions: Position of each token inside its own sequence, -1 at padding.
      intra_block_positions: Added to each window.
      compress: Turns a flattened window into a key.
      block_size: S, tokens in a block; a multiple of `stride`.
      stride: s, tokens from one window to the next.

    Returns:
      One key for each slot, `slots` = ceil(L / block_size): that of the block that begins in the
      slot's `block_size` tokens (there is at most one), zero where none does.
    """
    window = intra_block_positions.shape[1]
    offset, first_position = _complete_blocks(positions, block_size)
    blocks = _gather_blocks(k, offset, block_size)  # [B, slots, S, G, D]

    # A sequence's blocks stand in neighbouring slots, so earlier tokens come from there: every
    # token is gathered once, and the gradient needs no sum over colliding indices.
    num_earlier = -(-(window - stride) // block_size)
    reach = num_earlier * block_size
    tokens = jnp.concatenate([_shift(blocks, n) for n in range(num_earlier, -1, -1)], axis=2)
    token_position = first_position[:, :, None] + jnp.arange(-reach, block_size)
    inside = (token_position >= 0) & (first_position >= 0)[:, :, None]
    tokens = jnp.where(inside[..., None, None], tokens, 0).swapaxes(2, 3)  # [B, slots, G, -, D]

    keys = _compress_blocks(
        tokens, intra_block_positions, compress, block_size=block_size, stride=stride
    )
    return jnp.where((first_position >= 0)[..., None, None], keys, 0)


def mean_keys(
    k: Float[Array, "B L G D"], positions: Int[Array, "B L"], *, block_size: int
) -> Float[Array, "B slots G D"]:
    """Averages the keys of every complete block: a summary key without parameters.

    Args:
      k: Rotated keys.
      positions: Position of each token inside its own sequence, -1 at padding.
      block_size: S, tokens in a block.

    Returns:
      As `summary_keys`.
    """
    num_kv_heads, head_size = k.shape[2:]
    return summary_keys(
        k,
        positions,
        jnp.zeros((num_kv_heads, block_size, head_size), k.dtype),
        lambda blocks: blocks.reshape(*blocks.shape[:-1], block_size, head_size).mean(-2),
        block_size=block_size,
        stride=block_size,
    )


def _compress_blocks(tokens, intra_block_positions, compress, *, block_size: int, stride: int):
    """Compresses the block that ends each row of tokens: [*n, G, T, D] -> [*n, G, D]."""
    *_, length, head_size = tokens.shape
    window = intra_block_positions.shape[1]
    ends = range(length - block_size + stride, length + 1, stride)
    windows = jnp.stack([tokens[..., end - window : end, :] for end in ends])
    windows = windows + intra_block_positions  # [S/s, *n, G, l, D]
    keys = compress(windows.reshape(*windows.shape[:-2], window * head_size))
    return keys.astype(jnp.float32).mean(0).astype(tokens.dtype)


def _complete_blocks(positions, block_size: int):
    """Finds the complete block that begins in each slot.

    Returns:
      Where in the slot it begins, and the position of its first token: int32 [B, slots] each; 0
      and -1 where no complete block begins.
    """
    b, length = positions.shape
    slots = -(-length // block_size)
    padded = jnp.pad(
        positions, ((0, 0), (0, slots * block_size - length + block_size - 1)), constant_values=-1
    )
    first, last = padded[:, : slots * block_size], padded[:, block_size - 1 :]
    complete = (first >= 0) & (first % block_size == 0) & (last == first + block_size - 1)
    first_position = jnp.where(complete, first, -1).reshape(b, slots, block_size).max(-1)
    return complete.reshape(b, slots, block_size).argmax(-1), first_position


def _gather_blocks(k, offset, block_size: int):
    """Reads `block_size` tokens from `offset` of each slot on: [B, slots, S, G, D]."""
    length, slots = k.shape[1], offset.shape[1]
    padded = jnp.pad(k, ((0, 0), (0, (slots + 1) * block_size - length), (0, 0), (0, 0)))
    begin = jnp.arange(slots) * block_size + offset

    def read(row, begin):
        return jax.lax.dynamic_slice_in_dim(row, begin, block_size)

    return jax.vmap(jax.vmap(read, (None, 0)))(padded, begin)


def _shift(blocks, num_slots: int):
    """Moves every block `num_slots` slots on; zeros come in."""
    if num_slots == 0:
        return blocks
    return jnp.pad(blocks, ((0, 0), (num_slots, 0), (0, 0), (0, 0), (0, 0)))[:, :-num_slots]
