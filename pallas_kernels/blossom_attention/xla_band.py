"""Both paths where histories are short: dense products in a band, weighted twice.

A row is one chunk, or is cut into chunks as long as the longest history. A chunk of queries meets
its own keys and those of the chunk before; which of them it attends on either path is a mask. The
two paths share logits and values: the gate adds their weights, not their outputs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import tiles
from pallas_kernels.masked_softmax import MASKED, at_least_f32, einsum
from pallas_kernels.positions import own_slot, sequence_start

# Of a band. On two CPU cores, at the released sizes, bands of 50 and 100 took half and a quarter of
# the time of lists of keys with gradients; one of 200 half of the time and twice the memory.
_MOST_KEYS = 128
# Numbers of one array of logits, 128 MiB in f32; the backward pass has about seven such arrays.
_LOGITS_AT_ONCE = 2**25


class _Sizes(NamedTuple):
    """Static sizes.

    Attributes:
      block_size: S.
      window: W.
      chunk: queries that share a band.
      trains: whether the probabilities get a gradient.
    """

    block_size: int
    window: int
    chunk: int
    trains: bool


class _Queries(NamedTuple):
    """Queries of n chunks, and what their masks need.

    Attributes:
      query: [n, C, G, R, D], scaled.
      gate: [n, C, G, R, 2].
      slots: int32[n, C, G, N], selected.
      own: int32[n, C], own block.
      first: int32[n, C], first token of the own sequence.
      index: int32[n, C], place in the row, -1 at padding.
    """

    query: Any
    gate: Any
    slots: Any
    own: Any
    first: Any
    index: Any


class _Keys(NamedTuple):
    """Keys of the bands of n chunks.

    Attributes:
      keys: [n, J, G, D].
      values: [n, J, G, D].
      slot: int32[n, J], block.
      index: int32[n, J], place in the row, -1 where there is no token.
    """

    keys: Any
    values: Any
    slot: Any
    index: Any


def serves(length: int, max_history: int) -> bool:
    """Tells whether bands are so narrow that they take the place of lists of keys.

    Args:
      length: L.
      max_history: positions stay below it.
    """
    return min(length, 2 * max_history) <= _MOST_KEYS


def band_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    gate: Float[Array, "B L H 2"],
    slots: Int[Array, "B L G N"],
    probability: Float[Array, "B L G N"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    window: int,
    selection_gradient: str,
    max_history: int,
) -> Float[Array, "B L H D"]:
    """Attends on both paths and adds them by the gate; causal only.

    Args:
      q: queries, rotated.
      k: keys, rotated.
      v: values.
      gate: weights of the (long-term, short-term) path.
      slots: selected blocks, see `selected_attention`.
      probability: theirs, likewise.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      block_size: S, tokens in a block.
      window: W, most recent tokens on the short-term path.
      selection_gradient: see `selected_attention`.
      max_history: positions stay below it.

    Returns:
      [B, L, H, D] in q's dtype, zero at padding.
    """
    length = positions.shape[1]
    chunk = length if length <= 2 * max_history else max_history
    sizes = _Sizes(block_size, window, chunk, trains=selection_gradient != "none")
    return _attention(q, k, v, gate, probability, slots, positions, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _attention(q, k, v, gate, probability, slots, positions, sizes):
    return _forward(q, k, v, gate, probability, slots, positions, sizes)[0]


def _forward(q, k, v, gate, probability, slots, positions, sizes):
    bands = _cut(q, k, v, gate, slots, positions, sizes)
    out, log_totals = _by_groups(functools.partial(_attend, sizes=sizes), bands, sizes)
    out = _joined(out, positions.shape).reshape(q.shape).astype(q.dtype)
    return out, (q, k, v, gate, probability, slots, positions, log_totals)


def _backward(sizes, saved, d_out):
    q, k, v, gate, probability, slots, positions, log_totals = saved
    bands = _cut(q, k, v, gate, slots, positions, sizes)
    d_out = _chunks(_grouped(at_least_f32(d_out), k.shape[2]), sizes)
    gradients = functools.partial(_gradients, sizes=sizes)
    by_query, by_key = _by_groups(gradients, (*bands, log_totals, d_out), sizes)
    d_query, d_gate, d_blocks = (_joined(x, positions.shape) for x in by_query)
    d_keys, d_values = (_added(x, positions.shape, sizes) for x in by_key)
    return (
        (d_query * q.shape[-1] ** -0.5).reshape(q.shape).astype(q.dtype),
        d_keys.astype(k.dtype),
        d_values.astype(v.dtype),
        d_gate.reshape(gate.shape).astype(gate.dtype),
        d_blocks.astype(probability.dtype),
        None,
        None,
    )


_attention.defvjp(_forward, _backward)


def _attend(queries: _Queries, keys: _Keys, *, sizes: _Sizes):
    """Attends some chunks: [n, C, G, R, D], and the paths' log-sum-exps, [n, G, C, R, 1] each."""
    logits = einsum("ncgrd,njgd->ngcrj", queries.query, keys.keys)
    weight, log_totals = jnp.zeros_like(logits), []
    for mask, gate in zip(_masks(queries, keys, sizes), _by_path(queries), strict=True):
        allowed = jnp.where(mask, logits, MASKED)
        highest = allowed.max(-1, keepdims=True)
        exponential = jnp.where(mask, jnp.exp(allowed - highest), 0)
        total = exponential.sum(-1, keepdims=True)
        total = jnp.where(total > 0, total, 1)
        weight += gate / total * exponential
        log_totals.append(highest + jnp.log(total))
    return einsum("ngcrj,njgd->ncgrd", weight, keys.values), tuple(log_totals)


def _gradients(queries: _Queries, keys: _Keys, log_totals, d_out, *, sizes: _Sizes):
    """Gradients of some chunks: by (query, gate, selected block), and by (key, value) of bands."""
    logits = einsum("ncgrd,njgd->ngcrj", queries.query, keys.keys)
    d_weight = einsum("ncgrd,njgd->ngcrj", d_out, keys.values)
    gates = _by_path(queries)
    shares = [
        jnp.where(mask, jnp.exp(logits - log_total), 0)
        for mask, log_total in zip(_masks(queries, keys, sizes), log_totals, strict=True)
    ]
    deltas = [(share * d_weight).sum(-1, keepdims=True) for share in shares]
    weights = [gate * share for gate, share in zip(gates, shares, strict=True)]
    d_paths = [w * (d_weight - delta) for w, delta in zip(weights, deltas, strict=True)]
    d_gate = jnp.moveaxis(jnp.concatenate(deltas, -1), 2, 1)
    d_blocks = _by_block((d_paths[0] * logits).sum(3), queries, keys, sizes)
    d_logits = sum(d_paths)
    d_keys = einsum("ngcrj,ncgrd->njgd", d_logits, queries.query)
    d_values = einsum("ngcrj,ncgrd->njgd", sum(weights), d_out)
    d_query = einsum("ngcrj,njgd->ncgrd", d_logits, keys.keys)
    return (d_query, d_gate, d_blocks), (d_keys, d_values)


def _masks(queries: _Queries, keys: _Keys, sizes: _Sizes) -> tuple[Bool[Array, "..."], ...]:
    """Tells which keys a query attends on the long-term and on the short-term path: [n,G,C,1,J]."""
    index, slot = keys.index[:, None], keys.slot[:, None]
    seen = (index >= queries.first[..., None]) & (index <= queries.index[..., None]) & (index >= 0)
    distance = queries.index[..., None] - index
    near = (distance < sizes.window) | (distance & (distance - 1) == 0)
    own = queries.own[..., None] == slot
    selected = (queries.slots[..., None] == slot[:, :, None, None]).any(3)
    long = seen[:, :, None] & (own[:, :, None] | selected)
    return jnp.moveaxis(long, 2, 1)[:, :, :, None], (seen & near)[:, None, :, None]


def _by_path(queries: _Queries) -> tuple[Float[Array, "n G C R 1"], ...]:
    """Takes the gates of the two paths apart; 0 at padding."""
    gate = jnp.where(queries.index[..., None, None, None] >= 0, queries.gate, 0)
    gate = jnp.moveaxis(gate, 1, 2)
    return gate[..., :1], gate[..., 1:]


def _by_block(by_key: Float[Array, "n G C J"], queries: _Queries, keys: _Keys, sizes: _Sizes):
    """Adds up what the keys of each selected block got: [n, C, G, N]; 0 where nobody asks."""
    if not sizes.trains:
        return jnp.zeros(queries.slots.shape, by_key.dtype)
    is_in = queries.slots[..., None] == keys.slot[:, None, None, None]  # n C G N J
    return einsum("ngcj,ncgwj->ncgw", by_key, is_in.astype(by_key.dtype))


def _cut(q, k, v, gate, slots, positions, sizes) -> tuple[_Queries, _Keys]:
    """Cuts all rows into chunks of queries, and their bands of keys."""
    own, kv_heads = own_slot(positions, block_size=sizes.block_size), k.shape[2]
    index = jnp.where(positions >= 0, jnp.arange(positions.shape[1], dtype=jnp.int32), -1)
    query = _grouped(at_least_f32(q) * q.shape[-1] ** -0.5, kv_heads)
    gate, first = _grouped(at_least_f32(gate), kv_heads), sequence_start(positions)
    by_query = (query, gate, slots, own, first, index)
    by_key = (at_least_f32(k), at_least_f32(v), own, index)
    return (
        _Queries(*(_chunks(x, sizes) for x in by_query)),
        _Keys(*(_chunks(x, sizes, before=True) for x in by_key)),
    )


def _grouped(x: Float[Array, "B L H *E"], kv_heads: int) -> Float[Array, "B L G R *E"]:
    """Takes the heads apart by the key/value head that they read."""
    return x.reshape(*x.shape[:2], kv_heads, -1, *x.shape[3:])


def _chunks(x: Array, sizes: _Sizes, *, before: bool = False) -> Array:
    """Cuts [B, L, ...] into [n, C, ...], or, each with the chunk before, into [n, J, ...]."""
    x = tiles.split(x, sizes.chunk, fill=-1)  # no token, or whatever: it has no weight
    if before and len(x) > 1:
        x = jnp.concatenate([jnp.full_like(x, -1).at[1:].set(x[:-1]), x], 2)
    return x.reshape(-1, *x.shape[2:])


def _joined(x: Array, shape: tuple[int, int]) -> Array:
    """Takes back `_chunks`: [n, C, ...] -> [B, L, ...]."""
    return tiles.join(x.reshape(-1, shape[0], *x.shape[1:]), shape[1])


def _added(x: Array, shape: tuple[int, int], sizes: _Sizes) -> Array:
    """Adds up what each key got as one of its own chunk and as one before another: [B, L, ...]."""
    if x.shape[1] == sizes.chunk:
        return _joined(x, shape)
    x = x.reshape(-1, shape[0], *x.shape[1:])
    before, own = jnp.split(x, 2, 2)
    return tiles.join(own.at[:-1].add(before[1:]), shape[1])


def _by_groups(call: Callable, arrays: Any, sizes: _Sizes) -> Any:
    """Calls with all chunks at once, or with one group after another where all are too large.

    Under `vmap` a group is as many times as large.
    """
    queries, keys = arrays[:2]
    count, chunk, kv_heads, group = queries.query.shape[:4]
    width = max(group, queries.slots.shape[-1]) if sizes.trains else group
    groups = -(
        -count // max(1, _LOGITS_AT_ONCE // (chunk * keys.index.shape[1] * kv_heads * width))
    )
    if groups == 1:
        return call(*arrays)
    at_once = -(-count // groups)
    cut = jax.tree.map(lambda x: tiles.split(x[None], at_once)[:, 0], arrays)
    found = jax.lax.map(lambda part: call(*part), cut)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)
