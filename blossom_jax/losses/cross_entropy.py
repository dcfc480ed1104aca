"""Cross-entropy over a whole catalogue, without the logits of all tokens at once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from blossom_jax import sharding
from blossom_jax.losses import chunks
from blossom_jax.losses.chunks import dot, sum_over

_MOST_LOGITS = 2**27  # that exist at once on a device: half a gigabyte
_LEAST_CHUNK = 64  # tokens: with fewer, most of the time goes into adding to the table's gradient


class _Options(NamedTuple):
    first_item: int  # 1, or 0 where padding counts as an item
    num_items: int
    chunk: int
    label_smoothing: float
    mesh: jax.sharding.Mesh | None

    @property
    def num_classes(self) -> int:
        return self.num_items + 1 - self.first_item


def full_cross_entropy(
    hidden: Float[Array, "T M"],
    table: Float[Array, "R M"],
    targets: Int[Array, "T"],
    *,
    num_items: int,
    chunk: int = 512,
    label_smoothing: float = 0.0,
    include_padding: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sums -log softmax over the catalogue, over the tokens that have a target.

    Logits exist for a chunk of the tokens at a time, see `chunks.over_chunks`. They are computed
    once: the gradients are formed together with the loss (three products in all), and the backward
    pass only scales them.

    Args:
      hidden: Output of the model, f32 or bf16; products are taken in this type and summed in f32.
      table: Item embeddings, item k in row k; rows beyond `num_items` are no items.
      targets: The item that follows each token, 0 where there is none.
      num_items: V, size of the catalogue.
      chunk: Tokens whose logits exist at once on each device, at most: where the catalogue is
        large they are fewer, so that there are no more than 2**27 logits, but not below 64.
      label_smoothing: Probability that the label gives to all items alike, in [0, 1); the target
        has the rest (https://arxiv.org/abs/1512.00567).
      include_padding: Whether row 0 takes part in the softmax, as in the authors' code.
      mesh: Devices over which `hidden` and `targets` ("data") and `table` ("model") are split by
        rows. None = everything is on one device.

    Returns:
      The sum (nats), and the number of tokens in it.

    Raises:
      ValueError: If `table` has too few rows, or a value is out of its range.
    """
    if table.shape[0] <= num_items:
        raise ValueError(f"table needs more than {num_items=} rows, got {table.shape=}")
    if chunk < 1:
        raise ValueError(f"chunk must be positive, got {chunk=}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing=}")
    rows = table.shape[0] // (1 if mesh is None else mesh.shape[sharding.MODEL])
    chunk = min(chunk, tokens_at_once(rows))
    first_item = 0 if include_padding else 1
    options = _Options(first_item, num_items, chunk, label_smoothing, mesh)
    run = chunks.sum_with_gradients(
        functools.partial(_loss, options=options),
        functools.partial(_loss_and_gradients, options=options),
        mesh,
        (sharding.ROWS,),
    )
    return run(hidden, table, targets), jnp.sum(targets > 0)


def tokens_at_once(rows: int) -> int:
    """Returns the tokens whose logits over so many rows may exist at once, in whole chunks."""
    return max(_LEAST_CHUNK, _MOST_LOGITS // rows // _LEAST_CHUNK * _LEAST_CHUNK)


def _loss(hidden, table, targets, *, options):
    """Forms the loss alone: one product."""
    own = _own_rows(table, targets, hidden.dtype, options)

    def add_chunk(loss, tokens):
        return loss + _chunk_loss(hidden, own, tokens, options).loss

    loss = chunks.over_chunks(add_chunk, jnp.float32(0), targets, options.chunk, options.mesh)
    return sum_over(sharding.DATA, loss, options.mesh)


def _loss_and_gradients(hidden, table, targets, *, options):
    """Forms the loss and, from the same exponentials, its gradients."""
    own = _own_rows(table, targets, hidden.dtype, options)

    def add_chunk(sums, tokens):
        loss, dhidden, dtable = sums
        chunk = _chunk_loss(hidden, own, tokens, options)
        p = chunk.p.astype(hidden.dtype)
        weighted = (chunk.hidden * chunk.scale).astype(hidden.dtype)
        dh = dot("cr,rm->cm", p, own.embeddings) * chunk.scale - chunk.label_rows
        return (
            loss + chunk.loss,
            dhidden.at[tokens].set(dh, mode="drop"),
            dtable + dot("cm,cr->mr", weighted, p),  # XLA's CPU forms the transpose faster
        )

    zeros = jnp.float32(0), jnp.zeros(hidden.shape), jnp.zeros(table.shape[::-1])
    loss, dhidden, dtable = chunks.over_chunks(
        add_chunk, zeros, targets, options.chunk, options.mesh
    )
    dtable = _minus_labels(dtable.T, hidden, targets, own, options)
    dhidden = sum_over(sharding.MODEL, dhidden, options.mesh).astype(hidden.dtype)
    dtable = sum_over(sharding.DATA, dtable, options.mesh).astype(table.dtype)
    return sum_over(sharding.DATA, loss, options.mesh), (dhidden, dtable)


def _minus_labels(dtable, hidden, targets, own, options):
    """Takes away what each label's probability of an item adds to the gradient of its row."""
    hidden = hidden.astype(jnp.float32)
    smoothing = options.label_smoothing
    dtable = dtable.at[own.targets].add((smoothing - 1) * hidden, mode="drop")
    if not smoothing:
        return dtable
    everywhere = jnp.sum(hidden, axis=0, where=(targets > 0)[:, None])
    return dtable - own.is_item[:, None] * (smoothing / options.num_classes * everywhere)


class _OwnRows(NamedTuple):
    """What one device has of the table."""

    embeddings: jax.Array  # [R, M]; rows that are no item repeat one that is
    is_item: jax.Array  # bool[R]
    targets: jax.Array  # int32[T], row of each token's target; R = another device has it, or none
    everywhere: jax.Array  # f32[M], what smoothing adds to the embedding of any label


def _own_rows(table, targets, dtype, options):
    first, own_targets = chunks.own_rows(targets, table.shape[0], options.mesh)
    item = first + jnp.arange(table.shape[0])
    is_item = (item >= options.first_item) & (item <= options.num_items)
    everywhere = jnp.float32(0)
    if options.label_smoothing:
        total = jnp.sum(table, axis=0, where=is_item[:, None])
        everywhere = options.label_smoothing / options.num_classes * total
    # As a repeated row changes no maximum, only the exponential needs a mask.
    embeddings = jnp.where(is_item[:, None], table, table[jnp.argmax(is_item)])
    return _OwnRows(embeddings.astype(dtype), is_item, own_targets, everywhere)


class _Chunk(NamedTuple):
    """A softmax over all items for C tokens, as far as one device has it."""

    loss: jax.Array  # f32, summed over the tokens
    hidden: jax.Array  # [C, M]
    label_rows: jax.Array  # [C, M], mean embedding under the label, as far as it is here
    p: jax.Array  # f32 [C, R]; times `scale` = probability of each item
    scale: jax.Array  # f32 [C, 1]


def _chunk_loss(hidden, own, tokens, options):
    num_tokens, num_rows = hidden.shape[0], own.embeddings.shape[0]
    h = hidden.at[tokens].get(mode="fill", fill_value=0)
    target = own.targets.at[tokens].get(mode="fill", fill_value=num_rows)
    target_rows = own.embeddings.at[target].get(mode="fill", fill_value=0)
    label_rows = (1 - options.label_smoothing) * target_rows + own.everywhere

    logits = dot("cm,rm->cr", h, own.embeddings)
    shift = jnp.max(logits, axis=1, keepdims=True)
    p = jnp.exp(jnp.where(own.is_item, logits - shift, -jnp.inf))
    own_lse = shift + jnp.log(jnp.sum(p, axis=1, keepdims=True))
    own_logit = jnp.sum(h.astype(jnp.float32) * label_rows, axis=1, keepdims=True)
    parts = jnp.stack([own_lse, own_logit])[None]  # [1, 2, C, 1]
    if options.mesh is not None:
        parts = lax.all_gather(parts[0], sharding.MODEL)
    lse = jax.nn.logsumexp(parts[:, 0], axis=0)  # [C, 1]
    losses = lse - jnp.sum(parts[:, 1], axis=0)

    loss = jnp.sum(losses, where=(tokens < num_tokens)[:, None])
    # The minimum is for a device without any item: its p is 0, its shift could be anything.
    scale = jnp.exp(jnp.minimum(shift - lse, 0))
    return _Chunk(loss, h, label_rows, p, scale)
