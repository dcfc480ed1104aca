"""The blocks that models are stacks of, around whatever mixes the tokens."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from blossom_jax import layers
from blossom_jax.attention import Attention
from blossom_jax.baselines.hstu import HSTUBlock
from blossom_jax.config import ModelConfig
from blossom_jax.mixers import make_mixer


class PostNormBlock(nnx.Module):
    """A transformer block that normalises each sum: BlossomRec's, RecBole's SASRec, BERT4Rec's."""

    normalizes = "input"  # of the stack: the embeddings

    def __init__(self, config: ModelConfig, attention: nnx.Module, *, rngs: nnx.Rngs):
        """Initialises what is around the attention.

        Args:
          config: Sizes and switches.
          attention: From `make_mixer`.
          rngs: Source of the initial weights.
        """
        self.config = config
        self.attention = attention
        # The authors keep this map of SASRec's after an attention that has one of its own.
        has_dense, hidden = isinstance(attention, Attention), config.hidden_size
        self.dense = layers.linear(hidden, hidden, config, rngs=rngs) if has_dense else None
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
          packed: Whether a row may hold several sequences, see `Attention`.
        """
        rate, keys = self.config.dropout, layers.split_key(dropout_key, 2)
        mixed = self.attention(x, positions, packed=packed)
        mixed = mixed if self.dense is None else self.dense(mixed)
        y = self.attention_norm(x + layers.dropout(mixed, rate, keys[0]))
        return self.feed_forward_norm(y + layers.dropout(self.feed_forward(y), rate, keys[1]))


class PreNormBlock(nnx.Module):
    """A transformer block that normalises each input: SASRec as published (arXiv 1808.09781)."""

    normalizes = "output"  # of the stack

    def __init__(self, config: ModelConfig, attention: nnx.Module, *, rngs: nnx.Rngs):
        """Initialises what is around the attention; arguments as of `PostNormBlock`."""
        self.config = config
        self.attention = attention
        self.attention_norm = layers.LayerNorm(config, rngs=rngs)
        self.feed_forward = layers.FeedForward(config, activation=nnx.relu, rngs=rngs)
        self.feed_forward_norm = layers.LayerNorm(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L M"],
        positions: Int[Array, "B L"],
        *,
        dropout_key: PRNGKeyArray | None = None,
        packed: bool = True,
    ) -> Float[Array, "B L M"]:
        """Mixes the tokens of each sequence, then maps every token alone, as `PostNormBlock`."""
        rate, keys = self.config.dropout, layers.split_key(dropout_key, 2)
        mixed = self.attention(self.attention_norm(x), positions, packed=packed)
        x = x + layers.dropout(mixed, rate, keys[0])
        mapped = self.feed_forward(self.feed_forward_norm(x))
        return x + layers.dropout(mapped, rate, keys[1])


class PlainBlock(nnx.Module):
    """What mixes the tokens, and dropout: GRU4Rec's layer (arXiv 1511.06939)."""

    normalizes = "nothing"

    def __init__(self, config: ModelConfig, attention: nnx.Module, *, rngs: nnx.Rngs):
        """Wraps the attention; arguments as of `PostNormBlock`."""
        del rngs
        self.config = config
        self.attention = attention

    def __call__(
        self,
        x: Float[Array, "B L M"],
        positions: Int[Array, "B L"],
        *,
        dropout_key: PRNGKeyArray | None = None,
        packed: bool = True,
    ) -> Float[Array, "B L M"]:
        """Mixes the tokens of each sequence; arguments as of `PostNormBlock`."""
        mixed = self.attention(x, positions, packed=packed)
        return layers.dropout(mixed, self.config.dropout, dropout_key)


Block = PostNormBlock | PreNormBlock | HSTUBlock | PlainBlock
BLOCK_TYPES: dict[str, Any] = {
    "post_norm": PostNormBlock,
    "pre_norm": PreNormBlock,
    "hstu": HSTUBlock,
    "plain": PlainBlock,
}


def make_block(config: ModelConfig, *, rngs: nnx.Rngs) -> Block:
    """Builds the block that `config.block` names, around what `config.attention` names."""
    return BLOCK_TYPES[config.block](config, make_mixer(config, rngs=rngs), rngs=rngs)
