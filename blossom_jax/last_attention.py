"""Attention of the last token of each history alone, reading what the layer keeps of the others.

Whoever asks what comes next needs no other token's result from the last layer, so nothing else is
computed there; and a history that grows by an event needs nothing but the new event's.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from blossom_jax import packed_rows
from blossom_jax.attention import split_heads
from blossom_jax.config import SCORED, ModelConfig
from pallas_kernels import decode
from pallas_kernels.blossom_attention.paths import add_by_gate


def can_attend(config: ModelConfig) -> bool:
    """Tells whether `attend` serves a model's attention."""
    if config.attention == "dense":
        return True
    return config.attention in _ATTEND and config.causal and config.selector in SCORED


def selects(config: ModelConfig) -> bool:
    """Tells whether a model's attention chooses blocks, by summary keys."""
    return config.attention in ("blossom", "ltis")


def attend(
    attention,
    x: Float[Array, "U 1 M"],
    q: Float[Array, "U 1 H D"],
    history: decode.History,
    new: decode.Token,
) -> Float[Array, "U 1 M"]:
    """Attends from one new token of each history, up to before the output's projection.

    Args:
      attention: A module that `can_attend` names.
      x: Activations; a gate may read them.
      q: Queries, rotated.
      history: What the layer keeps of the tokens before.
      new: The new tokens.
    """
    attended = _ATTEND[attention.config.attention](attention, x, q, history, new)
    return attended.reshape(x.shape)


def rows(k: Float[Array, "B L G D"], v: Float[Array, "B L G D"]) -> Float[Array, "B G L E"]:
    """Lays keys and values side by side, as a `decode.History` has them."""
    return jnp.concatenate([k, v], -1).swapaxes(1, 2)


def mix_last(
    mixer, x: Float[Array, "B L M"], positions: Int[Array, "B L"], last: Int[Array, "U"]
) -> Float[Array, "U 1 M"]:
    """Mixes the tokens of each history, for its last token alone.

    Args:
      mixer: From `make_mixer`; where `can_attend` does not name it, it computes all tokens.
      x: Activations of packed rows.
      positions: int32, position of each token inside its own history, -1 at padding.
      last: Place of each history's last token, counted along the rows.
    """
    config = mixer.config
    if not can_attend(config):
        return packed_rows.take(mixer(x, positions), last)[:, None]
    q, k, v = split_heads(mixer.qkv(x), positions, config)
    x, q, k_last, v_last = (packed_rows.take(a, last)[:, None] for a in (x, q, k, v))
    position = packed_rows.take(positions, last)
    history = _read_history(mixer, k, v, positions, last - position)
    new = decode.Token(rows(k_last, v_last), position, jnp.zeros_like(position))
    return mixer.out(attend(mixer, x, q, history, new))


def _read_history(attention, k, v, positions, start) -> decode.History:
    """Reads as many tokens from each start on as a history can have, and their summary keys."""
    config, length = attention.config, positions.shape[1]
    block = config.selection_block_size
    slots = -(-min(config.max_length, length) // block)
    tokens = packed_rows.read_from(jnp.concatenate([k, v], -1), start, slots * block)
    if not selects(config):
        return decode.History(tokens.swapaxes(1, 2), None)
    keys = attention.summary_keys(k, positions)
    first = start // length * keys.shape[1] + start % length // block
    found = packed_rows.read_from(keys, first, slots)
    return decode.History(tokens.swapaxes(1, 2), found.swapaxes(1, 2))


def _both_paths(attention, x, q, history, new):
    long_term = _long_term(attention, x, q, history, new)
    short_term = _short_term(attention, x, q, history, new)
    return add_by_gate(attention.gates(x), long_term, short_term)


def _long_term(attention, x, q, history, new):
    config = attention.config
    block_size, number = config.selection_block_size, config.num_selected_blocks
    blocks = decode.block_selection(
        q, history.summary_keys, new, block_size=block_size, num_selected=number
    )
    return decode.selected_attention(q, history.tokens, blocks, new, block_size=block_size)


def _short_term(attention, x, q, history, new):
    return decode.power_attention(q, history.tokens, new, window=attention.config.window)


def _dense(attention, x, q, history, new):
    return decode.dense_attention(q, history.tokens, new)


_ATTEND = {"blossom": _both_paths, "ltis": _long_term, "stis": _short_term, "dense": _dense}
ATTENTIONS = tuple(_ATTEND)
