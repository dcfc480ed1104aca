"""Cross-entropy over a whole catalogue, without the logits of all tokens at once."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from blossom_jax import sharding
from blossom_jax.losses import chunks, softmax
from blossom_jax.losses.chunks import sum_over

_MOST_LOGITS = 2**27  # that exist at once on a device: half a gigabyte
_LEAST_CHUNK = 64  # tokens: with fewer, most of the time goes into adding to the table's gradient


class _Options(NamedTuple):
    first_item: int  # 1, or 0 where padding counts as an item
    num_items: int
    chunk: int
    label_smoothing: float
    mesh: jax.sharding.Mesh | None
    implementation: str  # of `softmax.NAMES`

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
    implementation: str | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sums -log softmax over the catalogue, over the tokens that have a target.

    The gradients are formed together with the loss, and the backward pass only scales them. By XLA
    logits exist for a chunk of the tokens at a time, see `chunks.over_chunks`, and are computed
    once: three products in all. Kernels compute them twice, keep none, and take all tokens at once:
    four products, in 39 to 46% of the time on an H200 (docs/kernels.md), since none is written and
    read.

    Args:
      hidden: Output of the model, f32 or bf16; products are taken in this type and summed in f32.
      table: Item embeddings, item k in row k; rows beyond `num_items` are no items.
      targets: The item that follows each token, 0 where there is none.
      num_items: V, size of the catalogue.
      chunk: Tokens whose logits exist at once on each device, at most: where the catalogue is
        large they are fewer, so that there are no more than 2**27 logits, but not below 64. Kernels
        do not heed it.
      label_smoothing: Probability that the label gives to all items alike, in [0, 1); the target
        has the rest (https://arxiv.org/abs/1512.00567).
      include_padding: Whether row 0 takes part in the softmax, as in the authors' code.
      mesh: Devices over which `hidden` and `targets` ("data") and `table` ("model") are split by
        rows. None = everything is on one device.
      implementation: "xla" or "triton"; None = kernels for bf16 on a GPU that can run them.
        "triton_interpret" is for tests.

    Returns:
      The sum (nats), and the number of tokens in it.

    Raises:
      ValueError: If `table` has too few rows, or a value is out of its range.
      NotImplementedError: If kernels are asked for by name that do not serve these arrays.
    """
    _check(table, num_items, chunk, label_smoothing)
    name = softmax.choose(implementation, hidden, rows=len(table), mesh=mesh)
    chunk = _fitting(chunk, mesh, len(table)) if name == "xla" else len(targets)
    first_item = 0 if include_padding else 1
    options = _Options(first_item, num_items, chunk, label_smoothing, mesh, name)
    run = chunks.sum_with_gradients(
        functools.partial(_loss_and_gradients, options=options), mesh, (sharding.ROWS,)
    )
    return run(hidden, table, targets), jnp.sum(targets > 0)


def _check(table, num_items: int, chunk: int, label_smoothing: float) -> None:
    if table.shape[0] <= num_items:
        raise ValueError(f"table needs more than {num_items=} rows, got {table.shape=}")
    if chunk < 1:
        raise ValueError(f"chunk must be positive, got {chunk=}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing=}")


def _fitting(chunk: int, mesh: jax.sharding.Mesh | None, rows: int) -> int:
    own_rows = rows // (1 if mesh is None else mesh.shape[sharding.MODEL])
    return min(chunk, tokens_at_once(own_rows))


def tokens_at_once(rows: int) -> int:
    """Returns the tokens whose logits over so many rows may exist at once, in whole chunks."""
    return max(_LEAST_CHUNK, _MOST_LOGITS // rows // _LEAST_CHUNK * _LEAST_CHUNK)


def _loss_and_gradients(hidden, table, targets, *, options):
    """Forms the loss and its gradients."""
    own = _own_rows(table, targets, hidden.dtype, options)

    def add_chunk(sums, tokens):
        loss, dtable = sums
        chunk = _chunk_loss(hidden, own, tokens, options)
        mean, weighted_hidden = chunk.products()
        return (loss + chunk.loss, dtable + weighted_hidden), mean - chunk.label_rows

    zeros = jnp.float32(0), jnp.zeros(table.shape[::-1])
    (loss, dtable), dhidden = chunks.over_chunks(
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
    return dtable - own.items.is_item[:, None] * (smoothing / options.num_classes * everywhere)


class _OwnRows(NamedTuple):
    """What one device has of the table, and of the labels."""

    items: softmax.Items
    targets: jax.Array  # int32[T], row of each token's target; R = another device has it, or none
    everywhere: jax.Array  # f32[M], what smoothing adds to the embedding of any label


def _own_rows(table, targets, dtype, options):
    num_rows = table.shape[0]
    first, own_targets = chunks.own_rows(targets, num_rows, options.mesh)
    bounds = jnp.stack([options.first_item - first, options.num_items + 1 - first])
    bounds = jnp.clip(bounds, 0, num_rows).astype(jnp.int32)
    row, everywhere = jnp.arange(num_rows), jnp.float32(0)
    is_item = (row >= bounds[0]) & (row < bounds[1])
    if options.label_smoothing:
        total = jnp.sum(table, axis=0, where=is_item[:, None])
        everywhere = options.label_smoothing / options.num_classes * total
    embeddings = jnp.where(is_item[:, None], table, table[jnp.argmax(is_item)])
    items = softmax.Items(embeddings.astype(dtype), bounds, is_item)
    return _OwnRows(items, own_targets, everywhere)


class _Chunk(NamedTuple):
    """The loss of C tokens, and what the gradients need, as far as one device has it."""

    loss: jax.Array  # f32, summed over the tokens
    label_rows: jax.Array  # [C, M], mean embedding under the label, as far as it is here
    products: Callable[[], tuple[jax.Array, jax.Array]]  # see `Softmax`


def _chunk_loss(hidden, own, tokens, options):
    num_tokens, num_rows = hidden.shape[0], own.items.embeddings.shape[0]
    h = hidden.at[tokens].get(mode="fill", fill_value=0)
    target = own.targets.at[tokens].get(mode="fill", fill_value=num_rows)
    target_rows = own.items.embeddings.at[target].get(mode="fill", fill_value=0)
    label_rows = (1 - options.label_smoothing) * target_rows + own.everywhere
    real = tokens < num_tokens

    found = softmax.take(options.implementation, h, own.items, jnp.sum(real, dtype=jnp.int32))
    own_logit = jnp.sum(h.astype(jnp.float32) * label_rows, axis=1)
    parts = jnp.stack([found.log_total, own_logit])[None]  # [1, 2, C]
    if options.mesh is not None:
        parts = lax.all_gather(parts[0], sharding.MODEL)
    log_total = jax.nn.logsumexp(parts[:, 0], axis=0)  # [C]
    loss = jnp.sum(log_total - jnp.sum(parts[:, 1], axis=0), where=real)
    return _Chunk(loss, label_rows, functools.partial(found.products, log_total))
