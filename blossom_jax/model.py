"""BlossomRec: an item embedding, blocks of attention, and scores by the same embedding.

The baselines are the same model with another block, another attention or another objective.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from blossom_jax import layers, packed_rows, sharding
from blossom_jax.baselines.masking import append_mask
from blossom_jax.blocks import BLOCK_TYPES, make_block
from blossom_jax.config import ModelConfig
from blossom_jax.dense_attention import DenseAttention

__all__ = ["BlossomRec", "ModelConfig", "model_maker", "num_params"]

_TABLE_ROWS_MULTIPLE = 128  # the table splits evenly over any number of devices up to this


class BlossomRec(nnx.Module):
    """Encodes histories of items, and scores every item as the next one (arXiv 2512.13368)."""

    def __init__(self, config: ModelConfig, num_items: int, *, rngs: nnx.Rngs):
        """Initialises the parameters; there is no other state in the model.

        Args:
          config: Sizes and switches.
          num_items: V; items are 1..V, and 0 is padding.
          rngs: Source of the initial weights.
        """
        self.config = config
        self.num_items = num_items
        normalizes, hidden = BLOCK_TYPES[config.block].normalizes, config.hidden_size
        # Surplus rows are never read.
        rows = -(-(num_items + 1) // _TABLE_ROWS_MULTIPLE) * _TABLE_ROWS_MULTIPLE
        self.item_embedding = _embedding(rows, hidden, rngs)
        self.embedding_norm = layers.LayerNorm(config, rngs=rngs) if normalizes == "input" else None
        self.layers = nnx.List([make_block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.output_norm = layers.LayerNorm(config, rngs=rngs) if normalizes == "output" else None
        learned, masked = config.positions == "learned", config.objective == "masked"
        self.position_embedding = _embedding(config.max_length, hidden, rngs) if learned else None
        self.head = layers.linear(hidden, hidden, config, rngs=rngs) if masked else None

    def __call__(
        self,
        item_ids: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        *,
        dropout_key: PRNGKeyArray | None = None,
        packed: bool = True,
    ) -> Float[Array, "B L M"]:
        """Encodes every prefix of every sequence (or, not causal, every sequence as a whole).

        Args:
          item_ids: Items in 1..num_items, 0 for a hidden event; whatever stands at padding is
            looked up and not used.
          positions: int32, position of each token inside its own sequence, -1 at padding.
          dropout_key: Decides what dropout drops; None, as in evaluation, drops nothing.
          packed: Whether a row may hold several sequences. False promises that each row is one
            history from the row's first token on; only `attention="dense"` gains from that.

        Returns:
          Hidden states in the config's dtype. Those at padding mean nothing.
        """
        embedding_key, *keys = layers.split_key(dropout_key, 1 + self.config.num_layers)
        x = self._embed(item_ids, positions)
        x = layers.dropout(x, self.config.embedding_dropout, embedding_key)
        for layer, key in zip(self.layers, keys, strict=True):
            apply = functools.partial(layer, dropout_key=key, packed=packed)
            x = (jax.checkpoint(apply) if self.config.remat == "block" else apply)(x, positions)
        return self._output(x)

    def _embed(self, item_ids, positions):
        """Looks items and positions up: [B, L, M]."""
        x = sharding.look_up(self.item_embedding.embedding[...], item_ids)
        if self.embedding_norm is None:
            x *= self.config.hidden_size**0.5  # as SASRec and HSTU do
        if self.position_embedding is not None:
            x += self.position_embedding(jnp.maximum(positions, 0))
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return x.astype(self.config.compute_dtype)

    def _output(self, x):
        """Does what follows the last block, to every token alone."""
        if self.output_norm is not None:
            x = self.output_norm(x)
        if self.head is not None:
            x = layers.activated(self.head, layers.exact_gelu, x)
        return x

    def encode_next(
        self, item_ids: Int[Array, "B L"], positions: Int[Array, "B L"], last: Int[Array, "U"]
    ) -> Float[Array, "U M"]:
        """Encodes each history into the hidden state that scores what comes next.

        The last layer is computed for the last events alone.

        Args:
          item_ids: Packed rows. Behind each history at least `config.appended` tokens of its row
            are padding, but for those that end with it.
          positions: int32, position of each event inside its own history, -1 at padding; below
            `config.history_length`.
          last: int32, place of the last event of each history, counted along the rows.

        Returns:
          What `scores` takes. That of a place at padding means nothing.
        """
        if self.config.objective == "masked":
            item_ids, positions, last = append_mask(item_ids, positions, last)
        if not (packed := not self._gains_from_own_rows):
            length = min(positions.shape[1], self.config.max_length)
            item_ids, positions, last = packed_rows.one_a_row(item_ids, positions, last, length)
        *before, layer = self.layers
        x = self._embed(item_ids, positions)
        for each in before:
            x = each(x, positions, packed=packed)
        mixed = layer.mix_last(x, positions, last)
        return self._output(layer.finish(packed_rows.take(x, last)[:, None], mixed))[:, 0]

    @property
    def _gains_from_own_rows(self) -> bool:
        """Tells whether histories are encoded faster in rows of their own: by cuDNN alone."""
        mixer = self.layers[0].attention
        return isinstance(mixer, DenseAttention) and mixer.implementation(packed=False) == "cudnn"

    def scores(self, hidden: Float[Array, "*n M"]) -> Float[Array, "*n items"]:
        """Scores every item as the next one.

        Args:
          hidden: Hidden states, of the last token of each history say.

        Returns:
          f32 scores of 0..num_items, so of padding too, in column 0.
        """
        table = self.item_embedding.embedding[...]
        # The GPU's default would round f32 inputs to 10 bits, and so make ties.
        exact = jax.lax.Precision.HIGHEST
        scores = jnp.einsum("...m,vm->...v", hidden.astype(jnp.float32), table, precision=exact)
        # A slice of the table would be a copy of it, and lie on one device.
        return scores[..., : self.num_items + 1]


def model_maker(config: ModelConfig, num_items: int, seed: int) -> Callable[[], BlossomRec]:
    """Returns a function that builds the model with its initial parameters.

    Args:
      config: Sizes and switches.
      num_items: V, size of the catalogue.
      seed: Of the initial parameters.
    """
    return lambda: BlossomRec(config, num_items, rngs=nnx.Rngs(seed))


def _embedding(rows: int, width: int, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(rows, width, embedding_init=layers.WEIGHT_INIT, rngs=rngs)


def num_params(model: BlossomRec) -> int:
    """Counts parameters, without the surplus rows of the item table."""
    table = model.item_embedding.embedding
    surplus = (table.shape[0] - model.num_items - 1) * table.shape[1]
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) - surplus
