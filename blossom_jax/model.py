"""BlossomRec: an item embedding, post-norm transformer blocks, and scores by the same embedding."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from blossom_jax import layers, sharding
from blossom_jax.attention import make_attention
from blossom_jax.config import ModelConfig

__all__ = ["BlossomRec", "EncoderLayer", "ModelConfig", "model_maker", "num_params"]

_TABLE_ROWS_MULTIPLE = 128  # the table splits evenly over any number of devices up to this


class EncoderLayer(nnx.Module):
    """One post-norm transformer block."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.attention = make_attention(config, rngs=rngs)
        self.dense = layers.linear(config.hidden_size, config.hidden_size, config, rngs=rngs)
        self.attention_norm = layers.LayerNorm(config, rngs=rngs)
        self.feed_forward = layers.FeedForward(config, rngs=rngs)
        self.feed_forward_norm = layers.LayerNorm(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L M"],
        positions: Int[Array, "B L"],
        *,
        dropout_key: PRNGKeyArray | None = None,
        packed: bool = True,
    ) -> Float[Array, "B L M"]:
        """Mixes the tokens of each sequence, then maps every token alone.

        Args:
          x: Activations.
          positions: int32, position of each token inside its own sequence, -1 at padding.
          dropout_key: None drops nothing.
          packed: Whether a row may hold several sequences, see `DenseAttention`.
        """
        return self.finish(x, self.attention(x, positions, packed=packed), dropout_key=dropout_key)

    def finish(
        self,
        x: Float[Array, "B L M"],
        attended: Float[Array, "B L M"],
        *,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B L M"]:
        """Does what follows the attention, to every token alone.

        Args:
          x: What came into the block.
          attended: What its attention made of that.
          dropout_key: None drops nothing.
        """
        rate, keys = self.config.dropout, layers.split_key(dropout_key, 2)
        y = self.attention_norm(x + layers.dropout(self.dense(attended), rate, keys[0]))
        return self.feed_forward_norm(y + layers.dropout(self.feed_forward(y), rate, keys[1]))


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
        # Surplus rows are never read.
        rows = -(-(num_items + 1) // _TABLE_ROWS_MULTIPLE) * _TABLE_ROWS_MULTIPLE
        self.item_embedding = nnx.Embed(
            rows, config.hidden_size, embedding_init=layers.WEIGHT_INIT, rngs=rngs
        )
        self.embedding_norm = layers.LayerNorm(config, rngs=rngs)
        self.layers = nnx.List([EncoderLayer(config, rngs=rngs) for _ in range(config.num_layers)])

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
          item_ids: Items in 1..num_items; whatever stands at padding is looked up and not used.
          positions: int32, position of each token inside its own sequence, -1 at padding.
          dropout_key: Decides what dropout drops; None, as in evaluation, drops nothing.
          packed: Whether a row may hold several sequences. False promises that each row is one
            history from the row's first token on; only `attention="dense"` gains from that.

        Returns:
          Hidden states in the config's dtype. Those at padding mean nothing.
        """
        embedding_key, *keys = layers.split_key(dropout_key, 1 + self.config.num_layers)
        table = self.item_embedding.embedding[...]
        x = self.embedding_norm(sharding.look_up(table, item_ids))
        x = layers.dropout(x, self.config.embedding_dropout, embedding_key)
        for layer, key in zip(self.layers, keys, strict=True):
            apply = functools.partial(layer, dropout_key=key, packed=packed)
            x = (jax.checkpoint(apply) if self.config.remat == "block" else apply)(x, positions)
        return x

    def encode_next(
        self, item_ids: Int[Array, "B L"], positions: Int[Array, "B L"]
    ) -> Float[Array, "B M"]:
        """Encodes each history into the hidden state that scores what comes next.

        What follows the last attention is done for the last events alone.

        Args:
          item_ids: One history a row, from the row's first token on.
          positions: 0, 1, ..., and -1 at padding.

        Returns:
          What `scores` takes. That of a row without tokens means nothing.
        """
        *before, layer = self.layers
        x = self.embedding_norm(sharding.look_up(self.item_embedding.embedding[...], item_ids))
        for each in before:
            x = each(x, positions, packed=False)
        attended = layer.attention(x, positions, packed=False)
        last = jnp.maximum(jnp.sum(positions >= 0, axis=1) - 1, 0)[:, None, None]
        x, attended = (jnp.take_along_axis(a, last, axis=1) for a in (x, attended))
        return layer.finish(x, attended)[:, 0]

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


def num_params(model: BlossomRec) -> int:
    """Counts parameters, without the surplus rows of the item table."""
    table = model.item_embedding.embedding
    surplus = (table.shape[0] - model.num_items - 1) * table.shape[1]
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) - surplus
