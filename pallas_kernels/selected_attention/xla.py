"""Selected attention in plain XLA: a tile of queries gathers its blocks, whole blocks at a time.

The local block is one more block in the list, so own, tail and selected blocks take one road. The
backward pass gathers again, and adds each block's key and value gradients back where they came from.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles
from pallas_kernels.masked_softmax import MASKED, at_least_f32
from pallas_kernels.positions import blocks


def _block_list(slots, positions, block_size, causal):
    """First token and attended size of each query's K = N + 1 blocks, the local one last."""
    row = blocks(positions, block_size=block_size, causal=causal)
    begin = jnp.where(slots >= 0, slots * block_size + row.offset[:, :, None, None], 0)
    size = jnp.where(slots >= 0, block_size, 0)

    def with_local(selected, local):
        local = jnp.broadcast_to(local[:, :, None, None], (*selected.shape[:3], 1))
        return jnp.concatenate([selected, local], -1)

    return with_local(begin, row.local_begin), with_local(size, row.local_size)


@functools.partial(jax.vmap, in_axes=(0, 0, None))
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def _read_blocks(x, begin, block_size):
    """Reads blocks of rows: x [B, G, J, E], begin [B, G, n] -> [B, G, n, S, E]."""
    return jax.vmap(lambda first: jax.lax.dynamic_slice_in_dim(x, first, block_size))(begin)


@jax.vmap
@jax.vmap
def _add_blocks(x, begin, update):
    """Adds to what `_read_blocks` read; blocks may repeat and overlap."""
    blockwise = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )
    return jax.lax.scatter_add(x, begin[:, None], update, blockwise, mode="promise_in_bounds")


class _Tile:
    """T queries of every row with the keys and values they attend. R = H/G heads of a group."""

    def __init__(self, query, begin, size, keys_values, block_size):
        b, t, g, k = begin.shape
        self.shape = (b, g, t, k, block_size)
        self.query = jnp.moveaxis(query, 1, 2)  # B G T R D
        self.begin = jnp.moveaxis(begin, 1, 2).reshape(b, g, t * k)
        found = _read_blocks(keys_values, self.begin, block_size)
        self.keys, self.values = jnp.split(found.reshape(b, g, t, k * block_size, -1), 2, -1)
        inside = jnp.arange(block_size) < jnp.moveaxis(size, 1, 2)[..., None]
        allowed = inside.reshape(b, g, t, 1, k * block_size)
        logits = jnp.einsum("bgtrd,bgtjd->bgtrj", self.query, self.keys)
        self.allowed, self.logits = allowed, jnp.where(allowed, logits, MASKED)

    def attend(self):
        """Returns the output [B, T, G, R, D] and the log-sum-exp [B, T, G, R]."""
        highest = self.logits.max(-1, keepdims=True)
        weight = jnp.where(self.allowed, jnp.exp(self.logits - highest), 0)
        total = weight.sum(-1, keepdims=True)
        total = jnp.where(total > 0, total, 1)
        out = jnp.einsum("bgtrj,bgtjd->btgrd", weight / total, self.values)
        return out, jnp.moveaxis((highest + jnp.log(total))[..., 0], 1, 2)

    def gradients(self, d_out, mean, log_total):
        """Returns gradients by query, by block (keys and values), and by block probability."""
        d_out, mean, log_total = (jnp.moveaxis(x, 1, 2) for x in (d_out, mean, log_total))
        weight = jnp.where(self.allowed, jnp.exp(self.logits - log_total[..., None]), 0)
        d_weight = jnp.einsum("bgtrd,bgtjd->bgtrj", d_out, self.values)
        d_logits = weight * (d_weight - mean[..., None])
        d_query = jnp.einsum("bgtrj,bgtjd->btgrd", d_logits, self.keys)
        d_keys = jnp.einsum("bgtrj,bgtrd->bgtjd", d_logits, self.query)
        d_values = jnp.einsum("bgtrj,bgtrd->bgtjd", weight, d_out)
        b, g, t, k, s = self.shape
        d_blocks = jnp.concatenate([d_keys, d_values], -1).reshape(b, g, t * k, s, -1)
        d_probability = (d_logits * self.logits).reshape(b, g, t, -1, k, s).sum((3, 5))
        return d_query, d_blocks, jnp.moveaxis(d_probability[..., :-1], 1, 2)


def _keys_values(k, v, block_size):
    """Joins keys and values for one gather, [B, G, L + S, 2D]: a block may overhang the row."""
    joined = jnp.concatenate([at_least_f32(k), at_least_f32(v)], -1)
    return jnp.pad(jnp.moveaxis(joined, 2, 1), [(0, 0), (0, 0), (0, block_size), (0, 0)])


def _grouped(x, num_kv_heads):
    """[B, L, H, D] -> f32 [B, L, G, R, D]."""
    b, length, h, d = x.shape
    return at_least_f32(x).reshape(b, length, num_kv_heads, h // num_kv_heads, d)


def _forward(q, k, v, begin, size, block_size):
    length = q.shape[1]
    tile = tiles.tile_length(*q.shape[:2])
    keys_values = _keys_values(k, v, block_size)
    query = _grouped(q, k.shape[2]) * q.shape[-1] ** -0.5

    def step(xs):
        return _Tile(*xs, keys_values, block_size).attend()

    out, log_total = jax.lax.map(step, tuple(tiles.split(x, tile) for x in (query, begin, size)))
    out = tiles.join(out, length).reshape(q.shape).astype(q.dtype)
    return out, tiles.join(log_total, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q, k, v, probability, begin, size, block_size):
    return _forward(q, k, v, begin, size, block_size)[0]


def _save(q, k, v, probability, begin, size, block_size):
    out, log_total = _forward(q, k, v, begin, size, block_size)
    return out, (q, k, v, probability, begin, size, out, log_total)


def _backward(block_size, saved, d_out):
    q, k, v, probability, begin, size, out, log_total = saved
    (b, length, _, d), g = q.shape, k.shape[2]
    tile = tiles.tile_length(b, length)
    keys_values, scale = _keys_values(k, v, block_size), d**-0.5
    d_out = _grouped(d_out, g)
    mean = (d_out * _grouped(out, g)).sum(-1)

    def step(d_keys_values, xs):
        here = _Tile(*xs[:3], keys_values, block_size)
        d_query, d_blocks, d_probability = here.gradients(*xs[3:])
        return _add_blocks(d_keys_values, here.begin, d_blocks), (d_query, d_probability)

    by_query = (_grouped(q, g) * scale, begin, size, d_out, mean, log_total)
    xs = tuple(tiles.split(x, tile) for x in by_query)
    d_keys_values, found = jax.lax.scan(step, jnp.zeros_like(keys_values), xs)
    d_query, d_probability = (tiles.join(x, length) for x in found)
    d_keys, d_values = jnp.split(jnp.moveaxis(d_keys_values[:, :, :length], 1, 2), 2, -1)
    return (
        (d_query * scale).reshape(q.shape).astype(q.dtype),
        d_keys.astype(k.dtype),
        d_values.astype(v.dtype),
        d_probability.astype(probability.dtype),
        None,
        None,
    )


_attend.defvjp(_save, _backward)


def selected_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    slots: Int[Array, "B L G N"],
    probability: Float[Array, "B L G N"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    causal: bool,
    selection_gradient: str,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.selected_attention`."""
    if selection_gradient == "none":
        probability = jax.lax.stop_gradient(probability)
    begin, size = _block_list(slots, positions, block_size, causal)
    return _attend(q, k, v, probability, begin, size, block_size)
