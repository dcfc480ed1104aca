"""The blocks that models are stacks of, around whatever mixes the tokens."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from blossom_jax import layers, packed_rows
from blossom_jax.attention import Attention
from blossom_jax.config import ModelConfig
from blossom_jax.last_attention import mix_last
from blossom_jax.mixers import make_mixer


class Block(nnx.Module):
    """Mixes the tokens of each sequence, then maps every token alone.

    Attributes:
      normalizes: What of the stack is normalised besides: "input", the embeddings; "output"; or
        "nothing".
    """

    normalizes = "nothing"

    def __init__(self, config: ModelConfig, attention: Any, *, rngs: nnx.Rngs):
        """Initialises what is around the attention: nothing here.

        Args:
          config: Sizes and switches.
          attention: From `make_mixer`.
          rngs: Source of the initial weights.
        """
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
        """Does both parts.

        Args:
          x: Activations.
          positions: int32, position of each token inside its own sequence, -1 at padding.
          dropout_key: None drops nothing.
          packed: Whether a row may hold several sequences, see `Attention`.
        """
        return self.finish(x, self.mix(x, positions, packed=packed), dropout_key=dropout_key)

    def mix(
        self, x: Float[Array, "B L M"], positions: Int[Array, "B L"], *, packed: bool = True
    ) -> Float[Array, "B L M"]:
        """Mixes the tokens of each sequence."""
        return self.attention(x, positions, packed=packed)

    def mix_last(
        self, x: Float[Array, "B L M"], positions: Int[Array, "B L"], last: Int[Array, "U"]
    ) -> Float[Array, "U 1 M"]:
        """Does what `mix` does, for the last tokens of packed rows alone.

        Args:
          x: Activations.
          positions: As in a call.
          last: Place of each history's last token, counted along the rows.
        """
        return mix_last(self.attention, x, positions, last)

    def finish(
        self,
        x: Float[Array, "B L M"],
        mixed: Float[Array, "B L M"],
        *,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B L M"]:
        """Does what follows, to every token alone.

        Args:
          x: What came into the block.
          mixed: What `mix` made of that.
          dropout_key: None drops nothing.
        """
        raise NotImplementedError


class PlainBlock(Block):
    """What mixes the tokens, and dropout: GRU4Rec's layer (arXiv 1511.06939)."""

    def finish(self, x, mixed, *, dropout_key=None):
        """Drops out; `x` has no part."""
        del x
        return layers.dropout(mixed, self.config.dropout, dropout_key)


class PostNormBlock(Block):
    """A transformer block that normalises each sum: BlossomRec's, RecBole's SASRec, BERT4Rec's."""

    normalizes = "input"

    def __init__(self, config: ModelConfig, attention: Any, *, rngs: nnx.Rngs):
        """Initialises what is around the attention; arguments as of `Block`."""
        super().__init__(config, attention, rngs=rngs)
        # The authors keep this map of SASRec's after an attention that has one of its own.
        has_dense, hidden = isinstance(attention, Attention), config.hidden_size
        self.dense = layers.linear(hidden, hidden, config, rngs=rngs) if has_dense else None
        self.attention_norm = layers.LayerNorm(config, rngs=rngs)
        self.feed_forward = layers.FeedForward(config, rngs=rngs)
        self.feed_forward_norm = layers.LayerNorm(config, rngs=rngs)

    def finish(self, x, mixed, *, dropout_key=None):
        """Adds, normalises, and maps; arguments as of `Block`."""
        rate, keys = self.config.dropout, layers.split_key(dropout_key, 2)
        mixed = mixed if self.dense is None else self.dense(mixed)
        y = self.attention_norm(x + layers.dropout(mixed, rate, keys[0]))
        return self.feed_forward_norm(y + layers.dropout(self.feed_forward(y), rate, keys[1]))


class PreNormBlock(Block):
    """A transformer block that normalises each input: SASRec as published (arXiv 1808.09781)."""

    normalizes = "output"

    def __init__(self, config: ModelConfig, attention: Any, *, rngs: nnx.Rngs):
        """Initialises what is around the attention; arguments as of `Block`."""
        super().__init__(config, attention, rngs=rngs)
        self.attention_norm = layers.LayerNorm(config, rngs=rngs)
        self.feed_forward = layers.FeedForward(config, activation=nnx.relu, rngs=rngs)
        self.feed_forward_norm = layers.LayerNorm(config, rngs=rngs)

    def mix(self, x, positions, *, packed=True):
        """Normalises, then mixes the tokens of each sequence."""
        return self.attention(self.attention_norm(x), positions, packed=packed)

    def mix_last(self, x, positions, last):
        """Normalises, then mixes for the last tokens alone; arguments as of `Block`."""
        return mix_last(self.attention, self.attention_norm(x), positions, last)

    def finish(self, x, mixed, *, dropout_key=None):
        """Adds, maps what it normalises, and adds again; arguments as of `Block`."""
        rate, keys = self.config.dropout, layers.split_key(dropout_key, 2)
        x = x + layers.dropout(mixed, rate, keys[0])
        mapped = self.feed_forward(self.feed_forward_norm(x))
        return x + layers.dropout(mapped, rate, keys[1])


class HSTUBlock(Block):
    """HSTU's (arXiv 2402.17152) around any attention: `x + f(norm(attention) * u)`.

    Queries, keys, values and the gate u come through SiLU.
    """

    normalizes = "output"

    def __init__(self, config: ModelConfig, attention: Any, *, rngs: nnx.Rngs):
        """Initialises what is around the attention; arguments as of `Block`."""
        super().__init__(config, attention, rngs=rngs)
        self.input_norm = layers.LayerNorm(config, rngs=rngs)
        self.gate = layers.linear(
            config.hidden_size, config.hidden_size, config, use_bias=False, rngs=rngs
        )
        self.attention_norm = layers.LayerNorm(config, rngs=rngs)

    def mix(self, x, positions, *, packed=True):
        """Mixes the tokens of each sequence, without the attention's output map."""
        y = self.input_norm(x)
        return self.attention.mix(y, nnx.silu(self.attention.qkv(y)), positions, packed=packed)

    def mix_last(self, x, positions, last):
        """Mixes for all tokens, and takes the last ones; arguments as of `Block`."""
        return packed_rows.take(self.mix(x, positions), last)[:, None]

    def finish(self, x, mixed, *, dropout_key=None):
        """Normalises, gates, maps and adds; arguments as of `Block`."""
        gate = nnx.silu(self.gate(self.input_norm(x)))
        gated = layers.dropout(self.attention_norm(mixed) * gate, self.config.dropout, dropout_key)
        return x + self.attention.out(gated)


BLOCK_TYPES: dict[str, type[Block]] = {
    "post_norm": PostNormBlock,
    "pre_norm": PreNormBlock,
    "hstu": HSTUBlock,
    "plain": PlainBlock,
}


def make_block(config: ModelConfig, *, rngs: nnx.Rngs) -> Block:
    """Builds the block that `config.block` names, around what `config.attention` names."""
    return BLOCK_TYPES[config.block](config, make_mixer(config, rngs=rngs), rngs=rngs)
