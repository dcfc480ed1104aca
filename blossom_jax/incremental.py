"""Encodes one more event of a history, from what was kept of the earlier ones.

`start` encodes whole histories and keeps, for each layer, the rotated keys, the values and the
summary keys. `encode` then takes one event of each user, and `append` adds it to what is kept. Up
to `max_events` events the hidden states are those of the whole model. Beyond, whole blocks leave
from the front: an event at position i reads, in every layer, what stands from `first_kept(i)` on,
and nothing else changes.

The two are programs of their own: XLA (jax 0.10.2, on a CPU) copies an array that one program both
reads and updates, which made 22 ms of a step of 2 ms at 64,000 events, on a busy machine.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from blossom_jax import last_attention
from blossom_jax.attention import split_heads
from blossom_jax.config import ModelConfig
from blossom_jax.errors import UserError
from blossom_jax.model import BlossomRec
from pallas_kernels import decode

_LEAST_CAPACITY = 64  # events; capacities double from here on


class State(NamedTuple):
    """What is kept of the histories of B users.

    Attributes:
      num_events: int32[B], events so far, those that left included: the next one's position.
      hidden: [B, M], of each user's last event; its scores are those of the next item.
      layers: Keys, values and summary keys by layer.
    """

    num_events: Int[Array, "B"]
    hidden: Float[Array, "B M"]
    layers: tuple[decode.History, ...]

    @property
    def capacity(self) -> int:
        """C, events of each user that there is room for."""
        return self.layers[0].tokens.shape[2]


class Event(NamedTuple):
    """One event of each user, encoded.

    Attributes:
      hidden: [B, M].
      layers: What is added to the state in each layer, one token and one summary key.
    """

    hidden: Float[Array, "B M"]
    layers: tuple[decode.History, ...]


def check(config: ModelConfig, max_events: int) -> None:
    """Refuses what cannot be computed event by event.

    Args:
      config: Of the model.
      max_events: Most events of a user to keep.

    Raises:
      UserError: A model that looks ahead, or a `max_events` out of its range.
    """
    if config.attention not in last_attention.ATTENTIONS:
        raise UserError(
            f"model.attention={config.attention!r} cannot take one event at a time; those that can "
            f"are {', '.join(map(repr, last_attention.ATTENTIONS))}"
        )
    if (config.block, config.positions) != ("post_norm", "rope"):
        raise UserError(
            "one event at a time needs model.block='post_norm' and model.positions='rope', got "
            f"{config.block!r} and {config.positions!r}"
        )
    if not config.causal:
        raise UserError(
            "model.causal=False: each new event changes what was computed of the earlier ones, so "
            "there is no step; encode the whole history instead"
        )
    if config.attention != "stis" and config.selector != "compressor":
        raise UserError(
            f"model.selector={config.selector!r} cannot take one event at a time: encode the whole "
            "history instead, or use 'compressor'"
        )
    block = config.selection_block_size
    if not block <= max_events <= config.max_length:
        raise UserError(
            f"max_events={max_events} must lie between model.selection_block_size={block}, since "
            f"whole blocks leave, and model.max_length={config.max_length}, which was trained"
        )


def capacities(config: ModelConfig, max_events: int) -> tuple[int, ...]:
    """Lists the capacities that states have: doubling whole blocks up to `max_events`.

    Few sizes make few programs, and a state at most twice as large as its history.
    """
    block = config.selection_block_size
    largest = -(-max_events // block) * block
    size = -(-_LEAST_CAPACITY // block) * block
    doubling = []
    while size < largest:
        doubling.append(size)
        size *= 2
    return (*doubling, largest)


def bytes_per_event(config: ModelConfig) -> float:
    """Returns the bytes that a layer sets aside for each event that there is room for."""
    numbers: float = 2 * config.num_kv_heads * config.head_size
    if last_attention.selects(config):
        numbers += config.num_kv_heads * config.head_size / config.selection_block_size
    return float(numbers * config.compute_dtype.itemsize)


def first_kept(position: Int[Array, "B"], max_events: int, block_size: int) -> Int[Array, "B"]:
    """Finds the first event that the one at `position` may read.

    So many whole blocks have left as it takes to keep at most `max_events`, itself included.
    """
    surplus = jnp.maximum(position + 1 - max_events, 0)
    return -(-surplus // block_size) * block_size


def start(model: BlossomRec, item_ids: Int[Array, "B C"], num_events: Int[Array, "B"]) -> State:
    """Encodes whole histories.

    Args:
      model: Causal.
      item_ids: Items in 1..num_items, left-aligned; their number is one of `capacities`.
      num_events: int32, events of each history, at most the model's `max_length`; may be 0.
    """
    column = jnp.arange(item_ids.shape[1], dtype=jnp.int32)
    positions = jnp.where(column < num_events[:, None], column, -1)
    x = _embed(model, item_ids)
    histories = []
    for layer in model.layers:
        histories.append(_history(layer.attention, x, positions))
        x = layer(x, positions, packed=False)
    last = jnp.maximum(num_events - 1, 0)[:, None, None]
    return State(num_events, jnp.take_along_axis(x, last, axis=1)[:, 0], tuple(histories))


def encode(model: BlossomRec, state: State, item_ids: Int[Array, "B"], *, max_events: int) -> Event:
    """Encodes one more event of each user; `append` then adds it to the state.

    Args:
      model: That which the state was started with.
      state: With room for the event: fewer than `capacity` events so far, or `capacity` the
        largest of `capacities`, whose oldest block then makes room.
      item_ids: Items in 1..num_items.
      max_events: Most events of a user to keep, the same at every step.
    """
    position = state.num_events
    first = first_kept(position, max_events, model.config.selection_block_size)
    x = _embed(model, item_ids[:, None])  # [B, 1, M]
    added = []
    for layer, history in zip(model.layers, state.layers, strict=True):
        q, k, v = split_heads(layer.attention.qkv(x), position[:, None], model.config)
        new = decode.Token(last_attention.rows(k, v), position, first)
        attended = last_attention.attend(layer.attention, x, q, history, new)
        added.append(_added(layer.attention, history, new))
        x = layer.finish(x, layer.attention.out(attended))
    return Event(x[:, 0], tuple(added))


def append(state: State, event: Event) -> State:
    """Adds an event to the state: in place, if the state is donated."""
    position = state.num_events

    def write(ring, row):
        tokens = state.capacity // ring.shape[2]  # to each row of this ring
        return decode.write(ring, row, position // tokens)

    layers = jax.tree.map(write, state.layers, event.layers)
    return State(position + 1, event.hidden, layers)


def grow(state: State, capacity: int) -> State:
    """Returns the state with more room; nothing may have left from it yet."""

    def pad(ring):
        rows = ring.shape[2] * capacity // state.capacity
        return jnp.pad(ring, ((0, 0), (0, 0), (0, rows - ring.shape[2]), (0, 0)))

    return state._replace(layers=jax.tree.map(pad, state.layers))


def _embed(model, item_ids):
    return model.embedding_norm(model.item_embedding(item_ids))


def _history(attention, x, positions) -> decode.History:
    """Keeps what later events will read of these."""
    _, k, v = split_heads(attention.qkv(x), positions, attention.config)
    selects = last_attention.selects(attention.config)
    summary_keys = attention.compressor(k, positions).swapaxes(1, 2) if selects else None
    return decode.History(last_attention.rows(k, v), summary_keys)


def _added(attention, history: decode.History, new: decode.Token) -> decode.History:
    """Returns the new token, and the summary key of the block that it completes, if it does.

    Otherwise the block's key is not read before it is complete, and may be anything.
    """
    config = attention.config
    summary_keys = history.summary_keys
    if summary_keys is None:
        return decode.History(new.row, None)

    def compress():
        keys = decode.last_keys(history.tokens, new, attention.compressor.span)
        return attention.compressor.block_key(keys)[:, :, None]

    def nothing():
        return jnp.zeros_like(summary_keys[:, :, :1])

    completes = (new.position + 1) % config.selection_block_size == 0
    return decode.History(new.row, jax.lax.cond(completes.any(), compress, nothing))
