"""The sizes and switches of a model, checked once where they come in."""

import dataclasses

import jax
import jax.numpy as jnp

from blossom_jax.errors import UserError
from pallas_kernels import checks, dispatch

ATTENTIONS = ("blossom", "ltis", "stis", "dense")
DTYPES = ("float32", "bfloat16")
DENSE_IMPLEMENTATIONS = ("xla", "cudnn")
REMATS = ("none", "block")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of `BlossomRec` (arXiv 2512.13368).

    Attributes:
      attention: "blossom" (both paths and the gate), "ltis" or "stis" (that path alone, no gate),
        or "dense" (full attention: the SASRec twin).
      hidden_size: M, width of the residual stream and of the item embedding.
      inner_size: width of the feed-forward layer.
      num_layers: transformer blocks.
      num_heads: H, query heads.
      num_kv_heads: G, key/value heads; query head h reads key/value head h // (H/G).
      compress_block_size: l, tokens that one compression window reads.
      compress_stride: s, tokens between two windows.
      selection_block_size: S, tokens in a block of the long-term path.
      num_selected_blocks: N, blocks that a query selects.
      window: W, most recent tokens on the short-term path.
      max_length: longest history; a promise that positions stay below it.
      selection_gradient: "none" (as released: the compressor never trains) or "straight_through".
      dropout: rate after attention and after feed-forward.
      embedding_dropout: rate after the embedding's layer norm.
      causal: whether a token sees only its past.
      dtype: of the computation, "float32" or "bfloat16"; parameters are float32 always.
      implementation: of the attention ops, see `pallas_kernels`; of "dense", "xla" or "cudnn"; an
        empty string lets the fastest that runs here be chosen.
      remat: "none", or "block": the backward pass computes each transformer block anew from its
        input, instead of keeping what is inside (https://arxiv.org/abs/1604.06174).
      layer_norm_epsilon: added to the variance.
      grow_items: whether a run that starts from another may add items to its model.

    Raises:
      UserError: A value out of its range, or sizes that do not fit together.
    """

    attention: str = "blossom"
    hidden_size: int = 64
    inner_size: int = 256
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    compress_block_size: int = 32
    compress_stride: int = 16
    selection_block_size: int = 16
    num_selected_blocks: int = 4
    window: int = 8
    max_length: int = 50
    selection_gradient: str = "none"
    dropout: float = 0.2
    embedding_dropout: float = 0.2
    causal: bool = True
    dtype: str = "float32"
    implementation: str = ""
    remat: str = "none"
    layer_norm_epsilon: float = 1e-12
    grow_items: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is int or field.type == "int":
                value = getattr(self, field.name)
                _check(value >= 1, f"model.{field.name} must be at least 1, got {value}")
        self._check_names()
        self._check_sizes()

    def _check_names(self):
        _check_name("attention", self.attention, ATTENTIONS)
        _check_name("selection_gradient", self.selection_gradient, checks.SELECTION_GRADIENTS)
        _check_name("dtype", self.dtype, DTYPES)
        _check_name("remat", self.remat, REMATS)
        known = DENSE_IMPLEMENTATIONS if self.attention == "dense" else dispatch.NAMES
        _check_name("implementation", self.implementation, ("", *known))

    def _check_sizes(self):
        _check_divides("hidden_size", self.hidden_size, "num_heads", self.num_heads)
        _check_divides("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads)
        block, stride = self.selection_block_size, self.compress_stride
        _check_divides("selection_block_size", block, "compress_stride", stride)
        _check(
            self.head_size % 2 == 0,
            "rotary positions turn pairs: model.hidden_size / model.num_heads must be even, "
            f"got {self.hidden_size} / {self.num_heads}",
        )
        _check(
            self.compress_block_size >= stride,
            f"model.compress_block_size {self.compress_block_size} must not be below "
            f"model.compress_stride {stride}: the tokens between two windows would be lost",
        )
        for name in ("dropout", "embedding_dropout"):
            rate = getattr(self, name)
            _check(0 <= rate < 1, f"model.{name} must lie in [0, 1), got {rate}")
        epsilon = self.layer_norm_epsilon
        _check(epsilon > 0, f"model.layer_norm_epsilon must be positive, got {epsilon}")

    @property
    def head_size(self) -> int:
        """D, the width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype that activations have between layers."""
        return jnp.dtype(self.dtype)

    @property
    def precision(self) -> jax.lax.Precision:
        """Of matrix products: a GPU's default would round f32 to 10 bits, and flip selections."""
        exact = self.dtype == "float32"
        return jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _check_name(field: str, name: str, known: tuple[str, ...]) -> None:
    shown = ", ".join(repr(each) for each in known)
    _check(name in known, f"model.{field} must be one of {shown}, got {name!r}")


def _check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    _check(
        whole % part == 0,
        f"model.{whole_name} must be a multiple of model.{part_name}, got {whole} and {part}",
    )
