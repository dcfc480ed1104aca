"""Attention over a short list of keys for each query, streamed by tiles of queries in plain XLA.

Both sparse paths are this: only where the keys of a query stand differs, which a `KeyList` knows.
A tile reads its keys, attends, and in the backward pass reads them again and adds their gradients
back to where they came from; nothing larger than a tile's keys exists beyond arrays of q's size.
"""

import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import tiles
from pallas_kernels.masked_softmax import MASKED, at_least_f32, einsum

Rows = Float[Array, "B G P E"]  # keys and values of whole rows side by side (E = 2 D), with margins
Lists = Float[Array, "B G T J E"]  # those of each query's J keys


@runtime_checkable
class KeyList(Protocol):
    """Where the keys of a query stand; hashable, and never traced."""

    margin: tuple[int, int]  # tokens to pad the rows with at either end

    def read(self, rows: Rows, by_query: tuple) -> tuple[Lists, Bool[Array, "B #G T J"]]:
        """Reads every query's keys, and tells which of them it may attend."""
        ...

    def add(self, rows: Rows, by_query: tuple, update: Lists) -> Rows:
        """Adds to what `read` read."""
        ...


def _attend(query, lists, allowed):
    """Attends one tile: query [B, G, T, R, D] -> output of its shape, log-sum-exp [B, G, T, R]."""
    keys, values = jnp.split(lists, 2, -1)
    logits = _logits(query, keys, allowed)
    highest = logits.max(-1, keepdims=True)
    weight = jnp.where(allowed[:, :, :, None], jnp.exp(logits - highest), 0)
    total = weight.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, 1)
    out = einsum("bgtrj,bgtjd->bgtrd", weight / total, values)
    return out, (highest + jnp.log(total))[..., 0]


def _logits(query, keys, allowed):
    logits = einsum("bgtrd,bgtjd->bgtrj", query, keys)
    return jnp.where(allowed[:, :, :, None], logits, MASKED)


def _gradients(query, lists, allowed, d_out, delta, log_total):
    """Gradients of one tile by query and by key and value, and sum of d_logit * logit by key."""
    keys, values = jnp.split(lists, 2, -1)
    logits = _logits(query, keys, allowed)
    weight = jnp.exp(logits - log_total[..., None])
    weight = jnp.where(allowed[:, :, :, None], weight, 0)
    d_logits = weight * (einsum("bgtrd,bgtjd->bgtrj", d_out, values) - delta[..., None])
    d_query = einsum("bgtrj,bgtjd->bgtrd", d_logits, keys)
    d_keys = einsum("bgtrj,bgtrd->bgtjd", d_logits, query)
    d_values = einsum("bgtrj,bgtrd->bgtjd", weight, d_out)
    return d_query, jnp.concatenate([d_keys, d_values], -1), (d_logits * logits).sum(3)


def _rows(k, v, margin):
    joined = jnp.concatenate([at_least_f32(k), at_least_f32(v)], -1)
    return jnp.pad(jnp.moveaxis(joined, 2, 1), [(0, 0), (0, 0), margin, (0, 0)])


def _tiles(x, length):
    """Cuts [B, L, G, ...] into [tiles, B, G, T, ...]."""
    return jnp.moveaxis(tiles.split(x, length), 3, 2)


def _untiled(x, length):
    """Takes back `_tiles`."""
    return tiles.join(jnp.moveaxis(x, 2, 3), length)


def _grouped(x, num_kv_heads):
    """[B, L, H, D] -> [B, L, G, R, D], in x's dtype: a tile is widened when its turn comes."""
    b, length, h, d = x.shape
    return x.reshape(b, length, num_kv_heads, h // num_kv_heads, d)


def _forward(q, k, v, by_query, key_list):
    length, tile = q.shape[1], tiles.tile_length(*q.shape[:2])
    rows = _rows(k, v, key_list.margin)
    scale = q.shape[-1] ** -0.5

    def step(xs):
        query, by_query = xs
        out, log_total = _attend(at_least_f32(query) * scale, *key_list.read(rows, by_query))
        return out.astype(q.dtype), log_total

    by_query = tuple(tiles.split(x, tile, fill=-1) for x in by_query)
    out, log_total = jax.lax.map(step, (_tiles(_grouped(q, k.shape[2]), tile), by_query))
    return _untiled(out, length).reshape(q.shape), _untiled(log_total, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def streamed_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    probability: Float[Array, "B L G N"],
    by_query: tuple[Int[Array, "B L ..."], ...],
    key_list: KeyList,
) -> Float[Array, "B L H D"]:
    """Attends each query's list of keys.

    Args:
      q: queries; the logits are scaled by D**-0.5 here.
      k: keys.
      v: values.
      probability: carries the straight-through gradient of the first N of the list's equal parts
        (its blocks); N = 0 where there is none. Its values are not used.
      by_query: what the key list needs of each query; -1 stands for "nothing".
      key_list: where the keys stand.

    Returns:
      [B, L, H, D] in q's dtype; zero where a query may attend nothing.
    """
    return _forward(q, k, v, by_query, key_list)[0]


def _save(q, k, v, probability, by_query, key_list):
    out, log_total = _forward(q, k, v, by_query, key_list)
    return out, (q, k, v, probability, by_query, out, log_total)


def _backward(key_list, saved, d_out):
    q, k, v, probability, by_query, out, log_total = saved
    length, tile = q.shape[1], tiles.tile_length(*q.shape[:2])
    g, scale, (before, _) = k.shape[2], q.shape[-1] ** -0.5, key_list.margin
    rows, d_out = _rows(k, v, key_list.margin), _grouped(d_out, g)
    delta = (at_least_f32(d_out) * at_least_f32(_grouped(out, g))).sum(-1)
    selected = probability.shape[-1]

    def step(d_rows, xs):
        by_query, query, d_out, *rest = xs
        query, d_out = at_least_f32(query) * scale, at_least_f32(d_out)
        lists, allowed = key_list.read(rows, by_query)
        d_query, d_lists, d_by_key = _gradients(query, lists, allowed, d_out, *rest)
        d_query = (d_query * scale).astype(q.dtype)
        d_blocks = d_by_key
        if selected:
            d_blocks = d_by_key.reshape(*d_by_key.shape[:3], selected + 1, -1).sum(-1)
        return key_list.add(d_rows, by_query, d_lists), (d_query, d_blocks[..., :selected])

    by_query = tuple(tiles.split(x, tile, fill=-1) for x in by_query)
    by_head = (_tiles(x, tile) for x in (_grouped(q, g), d_out, delta, log_total))
    d_rows, (d_query, d_blocks) = jax.lax.scan(step, jnp.zeros_like(rows), (by_query, *by_head))
    d_keys_values = jnp.moveaxis(d_rows[:, :, before : before + length], 1, 2)
    d_keys, d_values = jnp.split(d_keys_values, 2, -1)
    return (
        _untiled(d_query, length).reshape(q.shape),
        d_keys.astype(k.dtype),
        d_values.astype(v.dtype),
        _untiled(d_blocks, length).astype(probability.dtype),
        None,
    )


streamed_attention.defvjp(_save, _backward)


@functools.partial(jax.vmap, in_axes=(0, 0, None))
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def read_blocks(x, begin, size):
    """Reads blocks of rows: x [B, G, P, E], begin [B, G, n] -> [B, G, n, size, E]."""
    return jax.vmap(lambda first: jax.lax.dynamic_slice_in_dim(x, first, size))(begin)


@jax.vmap
@jax.vmap
def add_blocks(x, begin, update):
    """Adds to what `read_blocks` read; blocks may repeat and overlap."""
    blockwise = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    return jax.lax.scatter_add(x, begin[:, None], update, blockwise, mode="clip")
