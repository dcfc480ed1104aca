"""The shape of one attention call, the options that say it, and the arrays for it."""

import argparse
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from blossom_jax.config import DTYPES, ModelConfig
from blossom_jax.errors import UserError
from experiments.benchmark import measure

# Of all input sets together: twice the L2 cache of the largest GPU (B200, 126 MB) and more.
_ROTATED_BYTES = 2**28
_MOST_SETS = 64


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shape of one call, in the letters of `pallas_kernels`.

    Attributes:
      rows: B, one history to a row.
      length: L, tokens of a row.
      heads: H, query heads.
      kv_heads: G, key/value heads.
      head_size: D.
      dtype: Of all arrays but the positions.
      selection_gradient: See `pallas_kernels.selected_attention`.
      block_size: S, the model's default as are the following.
      num_selected: N.
      window: W.
    """

    rows: int
    length: int
    heads: int
    kv_heads: int
    head_size: int
    dtype: str
    selection_gradient: str = "none"
    block_size: int = ModelConfig.selection_block_size
    num_selected: int = ModelConfig.num_selected_blocks
    window: int = ModelConfig.window

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return self.rows * self.length

    def split(self, heads: int, head_size: int) -> "Sizes":
        """Returns other heads, with as many of them to one key/value head, where there are."""
        kv_heads = max(1, heads * self.kv_heads // self.heads)
        return dataclasses.replace(self, heads=heads, kv_heads=kv_heads, head_size=head_size)


def num_sets(sizes: Sizes) -> int:
    """Returns how many sets of inputs to rotate, so that no call finds its own in the cache.

    One on a CPU, whose memory is scarcer than its cache is large.
    """
    if jax.default_backend() == "cpu":
        return 1
    heads = 2 * (sizes.heads + sizes.kv_heads)  # q and the output's gradient, k and v
    size = sizes.tokens * heads * sizes.head_size * jnp.dtype(sizes.dtype).itemsize
    return min(max(2, math.ceil(_ROTATED_BYTES / size)), _MOST_SETS)


def add_arguments(parser: argparse.ArgumentParser, lengths: tuple[int, ...]) -> None:
    """Adds the options that `read` reads."""
    add = parser.add_argument
    add("--lengths", type=measure.positives, default=lengths, help="tokens in a row")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--rows", type=measure.positives, default=(1,), help="one number or one for each length"
    )
    rows.add_argument("--tokens", type=measure.positive, help="rows are tokens / length")
    add_heads(parser, dtype="float32")
    add(
        "--selection-gradient",
        choices=("none", "straight_through"),
        default="none",
        help="of Blossom, see pallas_kernels.selected_attention",
    )


def add_heads(parser: argparse.ArgumentParser, dtype: str) -> None:
    """Adds the options that say how wide attention is, and its dtype, with this default."""
    add = parser.add_argument
    add("--heads", type=measure.positive, default=8, help="query heads; 8 by default")
    add("--kv-heads", type=measure.positive, default=2, help="key/value heads; 2 by default")
    add("--head-size", type=measure.positive, default=16, help="width of a head; 16 by default")
    add("--dtype", choices=DTYPES, default=dtype, help=f"{dtype} by default")


def read(arguments: argparse.Namespace) -> list[Sizes]:
    """Returns the sizes that the options ask for.

    Raises:
      UserError: They do not fit together.
    """
    lengths, rows, tokens = arguments.lengths, arguments.rows, arguments.tokens
    if arguments.heads % arguments.kv_heads:
        raise UserError(f"--kv-heads={arguments.kv_heads} must divide --heads={arguments.heads}")
    if tokens:
        for length in lengths:
            if tokens % length:
                raise UserError(f"--tokens={tokens} is no whole number of rows of {length=}")
        rows = tuple(tokens // length for length in lengths)
    elif len(rows) not in (1, len(lengths)):
        raise UserError(f"--rows needs one number, or one for each of {lengths=}: {rows=}")
    rows *= len(lengths) // len(rows)
    rest = {
        name: getattr(arguments, name)
        for name in ("heads", "kv_heads", "head_size", "dtype", "selection_gradient")
    }
    return [Sizes(r, length, **rest) for r, length in zip(rows, lengths, strict=True)]


class Draws:
    """Random arrays for all contenders at one size, made once."""

    def __init__(self):
        self._made: dict[tuple, tuple[Array, ...]] = {}

    def __call__(self, sizes: Sizes, seed: int) -> tuple[Array, ...]:
        """Returns q, k, v and a gradient of the output, each standard normal.

        Args:
          sizes: Shapes and dtype.
          seed: Another for each set of inputs.
        """
        heads = sizes.heads, sizes.kv_heads, sizes.kv_heads, sizes.heads
        shapes = tuple((sizes.rows, sizes.length, h, sizes.head_size) for h in heads)
        key = shapes, sizes.dtype, seed
        if key not in self._made:
            self._made[key] = _normal(shapes, sizes.dtype, seed)
        return self._made[key]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _normal(shapes, dtype, seed):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return tuple(
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )
