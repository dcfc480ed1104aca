"""The sizes and switches of a model, checked once where they come in."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from blossom_jax.errors import check, check_name
from pallas_kernels import checks, dispatch

BLOCKS = ("post_norm", "pre_norm", "hstu", "plain")
RECURRENT = ("gru", "mamba")  # mix tokens one after another: no queries and keys, the past alone
ATTENTIONS = ("blossom", "ltis", "stis", "dense", "dense_gated", "linear", "silu", *RECURRENT)
SCORED = ("compressor", "mean")  # selectors that score a block by a summary key
SUMMARIES = {"summary4": 4, "summary16": 16}  # averages that take the place of selected tokens
SELECTORS = (*SCORED, "recent", "random", "oracle", *SUMMARIES)
GATES = ("learned", "sum", "average")
POSITIONS = ("rope", "learned", "none")
OBJECTIVES = ("next", "masked")
DTYPES = ("float32", "bfloat16")
REMATS = ("none", "block")
# What papers call a model, by objective, causality, block, attention and positions.
_PUBLISHED = {
    ("next", True, "pre_norm", "dense", "learned"): "sasrec",
    ("next", True, "post_norm", "linear", "learned"): "linrec",
    ("next", True, "post_norm", "mamba", "none"): "mamba4rec",
    ("next", True, "hstu", "silu", "learned"): "hstu",
    ("next", True, "plain", "gru", "none"): "gru4rec",
    ("masked", False, "post_norm", "dense", "learned"): "bert4rec",
}
# Of the attention ops by name; attentions that are not listed take those of `pallas_kernels`.
_PLAIN_JAX = dict.fromkeys(("linear", "silu", *RECURRENT), ("xla",))
_IMPLEMENTATIONS = {"dense": ("xla", "cudnn"), **_PLAIN_JAX}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of `BlossomRec` (arXiv 2512.13368) and of the baselines.

    What mixes the tokens, the block around it, and how the model is told where a token stands are
    choices of their own: whatever is not refused here works together.

    Attributes:
      block: "post_norm" (the paper's), "pre_norm" (SASRec as published, arXiv 1808.09781), "hstu"
        (arXiv 2402.17152), or "plain" (nothing around what mixes the tokens).
      attention: What mixes the tokens. "blossom" (both paths and the gate), "ltis" or "stis" (that
        path alone, no gate), "dense" (full attention: the SASRec twin), "dense_gated" (full
        attention in place of the long-term path, gated with the short-term one), "linear" (LinRec,
        arXiv 2411.01537), "silu" (HSTU's), or no attention at all: "gru" (GRU4Rec, arXiv
        1511.06939), "mamba" (Mamba4Rec, arXiv 2403.03900).
      positions: "rope" turns queries and keys, "learned" adds a vector for each position to the
        embeddings, "none" does neither.
      rope_theta: base of the rotation's frequencies: the slowest pair turns by theta**(2 / D - 1)
        a position, D the head's width. Far keys that have turned a quarter look unlike themselves.
      objective: What a hidden state predicts: the "next" item, or, with "masked", what a mask token
        hides (BERT4Rec, arXiv 1904.06690).
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
      max_length: longest history; a promise that positions stay below it. A mask token counts.
      selection_gradient: "none" (as released: the compressor never trains) or "straight_through".
      selector: what chooses the N blocks: "compressor" (the paper's) or "mean" (a block's average
        key) score them; "recent" (a plain window), "random" and "oracle" (what dense attention
        weighs most) are rules, see `selectors.py`; "summary4" and "summary16" choose none, see
        `summary_attention.py`. Each query attends as many keys with any of them.
      selector_seed: of "random".
      gate: of the two paths: "learned", or none: their "sum" or "average".
      gate_bias_ltis: initial bias of the learned gate on the long-term path; the authors' full
        model starts at 0, their attention alone at -2, and 2 on the other.
      gate_bias_stis: likewise on the short-term path.
      dropout: rate after attention and after feed-forward.
      embedding_dropout: rate after the embedding's layer norm.
      causal: whether a token sees only its past.
      dtype: of the computation, "float32" or "bfloat16"; parameters are float32 always.
      implementation: of the attention ops, see `pallas_kernels`; of "dense", "xla" or "cudnn"; of
        what has one only, "xla"; an empty string lets the fastest that runs here be chosen.
      remat: "none", or "block": the backward pass computes each transformer block anew from its
        input, instead of keeping what is inside (https://arxiv.org/abs/1604.06174).
      layer_norm_epsilon: added to the variance.
      grow_items: whether a run that starts from another may add items to its model.

    Raises:
      UserError: A value out of its range, or sizes that do not fit together.
    """

    block: str = "post_norm"
    attention: str = "blossom"
    positions: str = "rope"
    rope_theta: float = 10000.0
    objective: str = "next"
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
    selector: str = "compressor"
    selector_seed: int = 0
    gate: str = "learned"
    gate_bias_ltis: float = 0.0
    gate_bias_stis: float = 0.0
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
                value, least = getattr(self, field.name), int(field.name != "selector_seed")
                check(value >= least, f"model.{field.name} must be at least {least}, got {value}")
                check(value < 2**31, f"model.{field.name} must be below 2**31, got {value}")
        self._check_names()
        self._check_combination()
        self._check_sizes()
        self._check_selector()

    def _check_names(self):
        check_name("model.block", self.block, BLOCKS)
        check_name("model.attention", self.attention, ATTENTIONS)
        check_name("model.positions", self.positions, POSITIONS)
        check_name("model.objective", self.objective, OBJECTIVES)
        check_name("model.selection_gradient", self.selection_gradient, checks.SELECTION_GRADIENTS)
        check_name("model.selector", self.selector, SELECTORS)
        check_name("model.gate", self.gate, GATES)
        check_name("model.dtype", self.dtype, DTYPES)
        check_name("model.remat", self.remat, REMATS)
        known = _IMPLEMENTATIONS.get(self.attention, dispatch.NAMES)
        check_name("model.implementation", self.implementation, ("", *known))

    def _check_combination(self):
        attention = f"model.attention={self.attention!r}"
        if self.attention in RECURRENT:
            check(
                self.positions != "rope",
                f"model.positions='rope' turns queries and keys; {attention} has none: "
                "choose 'none' or 'learned'",
            )
            check(
                self.block != "hstu",
                f"model.block='hstu' needs queries; {attention} has none: choose another block",
            )
            check(self.causal, f"{attention} reads forward alone: model.causal must be true")
        if self.objective == "masked":
            check(
                not self.causal,
                "model.objective='masked' predicts an event from both its sides: "
                "model.causal must be false",
            )
            check(
                self.history_length >= 1,
                "model.objective='masked' appends a mask to a history: model.max_length must be "
                f"at least 2, got {self.max_length}",
            )

    def _check_sizes(self):
        _check_divides("hidden_size", self.hidden_size, "num_heads", self.num_heads)
        _check_divides("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads)
        block, stride = self.selection_block_size, self.compress_stride
        _check_divides("selection_block_size", block, "compress_stride", stride)
        check(
            self.positions != "rope" or self.head_size % 2 == 0,
            "rotary positions turn pairs: model.hidden_size / model.num_heads must be even, "
            f"got {self.hidden_size} / {self.num_heads}",
        )
        theta = self.rope_theta
        check(1 < theta < math.inf, f"model.rope_theta must be above 1 and finite, got {theta}")
        check(
            self.compress_block_size >= stride,
            f"model.compress_block_size {self.compress_block_size} must not be below "
            f"model.compress_stride {stride}: the tokens between two windows would be lost",
        )
        for name in ("dropout", "embedding_dropout"):
            rate = getattr(self, name)
            check(0 <= rate < 1, f"model.{name} must lie in [0, 1), got {rate}")
        epsilon = self.layer_norm_epsilon
        check(epsilon > 0, f"model.layer_norm_epsilon must be positive, got {epsilon}")

    def _check_selector(self):
        check(
            self.causal or self.selector in SCORED,
            f"model.selector={self.selector!r} looks back alone: model.causal must be true, or "
            f"model.selector one of {', '.join(map(repr, SCORED))}",
        )
        spent, kept = SUMMARIES.get(self.selector, 0), self.num_selected_keys
        check(
            spent <= kept,
            f"model.selector={self.selector!r} puts {spent} averages in place of selected tokens, "
            "of which there are model.num_selected_blocks x model.selection_block_size = "
            f"{kept}: raise one of these",
        )
        for name in ("gate_bias_ltis", "gate_bias_stis"):
            bias = getattr(self, name)
            check(math.isfinite(bias), f"model.{name} must be finite, got {bias}")

    @property
    def num_selected_keys(self) -> int:
        """N S, the keys of a query's selected blocks."""
        return self.num_selected_blocks * self.selection_block_size

    @property
    def name(self) -> str:
        """Says which published model this is, or what is not BlossomRec's: "pre_norm blossom"."""
        published = _PUBLISHED.get(
            (self.objective, self.causal, self.block, self.attention, self.positions)
        )
        parts = (self.objective, "next"), (self.block, "post_norm"), (self.attention, "")
        return published or " ".join(value for value, default in parts if value != default)

    @property
    def history_length(self) -> int:
        """Events of a history that the model reads at most; an appended mask takes one's place."""
        return self.max_length - self.appended

    @property
    def appended(self) -> int:
        """Tokens behind a history when the model is asked what comes next: a mask, or none."""
        return int(self.objective == "masked")

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


def _check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    check(
        whole % part == 0,
        f"model.{whole_name} must be a multiple of model.{part_name}, got {whole} and {part}",
    )
