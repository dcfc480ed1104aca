"""Cross-entropy over a whole catalogue, without the logits of all tokens at once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from blossom_jax import sharding


class _Options(NamedTuple):
    first_item: int  # 1, or 0 where padding counts as an item
    num_items: int
    chunk: int
    mesh: jax.sharding.Mesh | None


def full_cross_entropy(
    hidden: Float[Array, "T M"],
    table: Float[Array, "R M"],
    targets: Int[Array, "T"],
    *,
    num_items: int,
    chunk: int = 512,
    include_padding: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sums -log softmax over the catalogue, over the tokens that have a target.

    Logits exist for `chunk` tokens at a time, and only for tokens that have a target. The
    cotangent of a sum is one number, so the gradients are formed together with the loss, from
    the same logits (three products in all), and the backward pass only scales them.

    Args:
      hidden: Output of the model, f32 or bf16; products are taken in this type and summed in f32.
      table: Item embeddings, item k in row k; rows beyond `num_items` are no items.
      targets: The item that follows each token, 0 where there is none.
      num_items: V, size of the catalogue.
      chunk: Tokens whose logits exist at once, on each device.
      include_padding: Whether row 0 takes part in the softmax, as in the authors' code.
      mesh: Devices over which `hidden` and `targets` ("data") and `table` ("model") are split by
        rows. None = everything is on one device.

    Returns:
      The sum (nats), and the number of tokens in it.

    Raises:
      ValueError: If `table` has too few rows or `chunk` is not positive.
    """
    if table.shape[0] <= num_items:
        raise ValueError(f"table needs more than {num_items=} rows, got {table.shape=}")
    if chunk < 1:
        raise ValueError(f"chunk must be positive, got {chunk=}")
    options = _Options(0 if include_padding else 1, num_items, chunk, mesh)
    return _cross_entropy(hidden, table, targets, options), jnp.sum(targets > 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(hidden, table, targets, options):
    return _on_all_devices(_loss, sharding.EVERYWHERE, options)(hidden, table, targets)


def _cross_entropy_forward(hidden, table, targets, options):
    out_specs = (sharding.EVERYWHERE, (sharding.ROWS, sharding.TABLE_ROWS))
    return _on_all_devices(_loss_and_gradients, out_specs, options)(hidden, table, targets)


def _cross_entropy_backward(_, gradients, cotangent):
    dhidden, dtable = (gradient * cotangent.astype(gradient.dtype) for gradient in gradients)
    return dhidden, dtable, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _on_all_devices(function, out_specs, options):
    """Makes `function` work on each device's tokens and rows of the table."""
    function = functools.partial(function, options=options)
    if options.mesh is None:
        return function
    return jax.shard_map(
        function,
        mesh=options.mesh,
        in_specs=(sharding.ROWS, sharding.TABLE_ROWS, sharding.ROWS),
        out_specs=out_specs,
        check_vma=False,  # it serves differentiation, and nothing differentiates this
    )


def _loss(hidden, table, targets, *, options):
    """Forms the loss alone: one product."""
    own = _own_rows(table, targets, hidden.dtype, options)

    def add_chunk(loss, tokens):
        return loss + _chunk_loss(hidden, own, tokens, options.mesh).loss

    loss = _over_chunks(add_chunk, jnp.float32(0), targets, options.chunk)
    return _sum_over(sharding.DATA, loss, options.mesh)


def _loss_and_gradients(hidden, table, targets, *, options):
    """Forms the loss and, from the same exponentials, its gradients."""
    own = _own_rows(table, targets, hidden.dtype, options)

    def add_chunk(sums, tokens):
        loss, dhidden, dtable = sums
        chunk = _chunk_loss(hidden, own, tokens, options.mesh)
        p = chunk.p.astype(hidden.dtype)
        weighted = (chunk.hidden * chunk.scale).astype(hidden.dtype)
        dh = _dot("cr,rm->cm", p, own.embeddings) * chunk.scale - chunk.target_rows
        return (
            loss + chunk.loss,
            dhidden.at[tokens].set(dh, mode="drop"),
            dtable + _dot("cm,cr->mr", weighted, p),  # XLA's CPU forms the transpose faster
        )

    zeros = jnp.float32(0), jnp.zeros(hidden.shape), jnp.zeros(table.shape[::-1])
    loss, dhidden, dtable = _over_chunks(add_chunk, zeros, targets, options.chunk)
    dtable = dtable.T.at[own.targets].add(-hidden.astype(jnp.float32), mode="drop")
    dhidden = _sum_over(sharding.MODEL, dhidden, options.mesh).astype(hidden.dtype)
    dtable = _sum_over(sharding.DATA, dtable, options.mesh).astype(table.dtype)
    return _sum_over(sharding.DATA, loss, options.mesh), (dhidden, dtable)


class _OwnRows(NamedTuple):
    """What one device has of the table."""

    embeddings: jax.Array  # [R, M]; rows that are no item repeat one that is
    is_item: jax.Array  # bool[R]
    targets: jax.Array  # int32[T], row of each token's target; R = another device has it, or none


def _own_rows(table, targets, dtype, options):
    num_rows = table.shape[0]
    first = 0 if options.mesh is None else num_rows * lax.axis_index(sharding.MODEL)
    item = first + jnp.arange(num_rows)
    is_item = (item >= options.first_item) & (item <= options.num_items)
    # As a repeated row changes no maximum, only the exponential needs a mask.
    embeddings = jnp.where(is_item[:, None], table, table[jnp.argmax(is_item)])
    is_here = (targets > 0) & (targets >= first)
    own_targets = jnp.where(is_here, targets - first, num_rows)
    return _OwnRows(embeddings.astype(dtype), is_item, own_targets)


class _Chunk(NamedTuple):
    """A softmax over all items for C tokens, as far as one device has it."""

    loss: jax.Array  # f32, summed over the tokens
    hidden: jax.Array  # [C, M]
    target_rows: jax.Array  # [C, M], 0 where another device has the target
    p: jax.Array  # f32 [C, R]; times `scale` = probability of each item
    scale: jax.Array  # f32 [C, 1]


def _chunk_loss(hidden, own, tokens, mesh):
    num_tokens, num_rows = hidden.shape[0], own.embeddings.shape[0]
    h = hidden.at[tokens].get(mode="fill", fill_value=0)
    target = own.targets.at[tokens].get(mode="fill", fill_value=num_rows)
    target_rows = own.embeddings.at[target].get(mode="fill", fill_value=0)

    logits = _dot("cm,rm->cr", h, own.embeddings)
    shift = jnp.max(logits, axis=1, keepdims=True)
    p = jnp.exp(jnp.where(own.is_item, logits - shift, -jnp.inf))
    own_lse = shift + jnp.log(jnp.sum(p, axis=1, keepdims=True))
    own_logit = jnp.sum(h.astype(jnp.float32) * target_rows, axis=1, keepdims=True)
    parts = jnp.stack([own_lse, own_logit])[None]  # [1, 2, C, 1]
    if mesh is not None:
        parts = lax.all_gather(parts[0], sharding.MODEL)
    lse = jax.nn.logsumexp(parts[:, 0], axis=0)  # [C, 1]
    losses = lse - jnp.sum(parts[:, 1], axis=0)

    loss = jnp.sum(losses, where=(tokens < num_tokens)[:, None])
    # The minimum is for a device without any item: its p is 0, its shift could be anything.
    scale = jnp.exp(jnp.minimum(shift - lse, 0))
    return _Chunk(loss, h, target_rows, p, scale)


def _over_chunks(add_chunk, sums, targets, chunk):
    """Adds up chunks of the tokens that have a target; past the last one, the index is T."""
    num_tokens = targets.shape[0]
    chunk = min(chunk, num_tokens)
    has_target = targets > 0
    padded = -(-num_tokens // chunk) * chunk
    (tokens,) = jnp.nonzero(has_target, size=padded, fill_value=num_tokens)

    def step(i, sums):
        return add_chunk(sums, lax.dynamic_slice_in_dim(tokens, i * chunk, chunk))

    return lax.fori_loop(0, -(-jnp.sum(has_target) // chunk), step, sums)


def _dot(letters, a, b):
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


def _sum_over(axis, x, mesh):
    return x if mesh is None else lax.psum(x, axis)
