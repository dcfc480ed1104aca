"""Power attention in plain XLA: one pass over the allowed distances, each a constant shift.

The keys at distance d are the row moved by d, so a loop over distances with a running softmax needs
no gather, no mask matrix and no memory beyond a few arrays of q's size, forward and backward.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.masked_softmax import MASKED, at_least_f32
from pallas_kernels.positions import sequence_end, sequence_start


def distances(window: int, causal: bool, max_history: int) -> np.ndarray:
    """Lists the distances i - j that a query may look at, nearest first."""
    near = min(window, max_history)
    powers = 2 ** np.arange(max(1, int(max_history).bit_length()))
    far = powers[(powers >= near) & (powers < max_history)]
    ahead = [] if causal else -np.arange(1, near)
    return np.concatenate([np.arange(near), far, ahead]).astype(np.int32)


class _Row:
    """A batch of rows with its keys padded at both ends, so that every shift is one slice."""

    def __init__(self, q, k, v, positions, window, causal, max_history):
        self.batch, self.length, heads, self.size = q.shape
        self.kv_heads = k.shape[2]
        self.group = heads // self.kv_heads
        self.shifts = distances(window, causal, max_history)
        self.before = int(max(self.shifts.max(), 0))
        self.after = int(max(-self.shifts.min(), 0))
        self.q, self.k, self.v = self.split(q), self.pad(k), self.pad(v)
        self.positions = positions
        self.start, self.end = sequence_start(positions), sequence_end(positions)
        self.last = None if causal else self.end - 1
        self.window = window

    def split(self, x):
        """[B, L, H, D] -> f32 [B, L, G, R, D]."""
        shape = (self.batch, self.length, self.kv_heads, self.group, self.size)
        return at_least_f32(x).reshape(shape)

    def pad(self, x):
        """Widens [B, L, ...] by the furthest shift at either end."""
        margin = [(0, 0), (self.before, self.after)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(at_least_f32(x), margin)

    def trim(self, x):
        """Takes back `pad`."""
        return jax.lax.slice_in_dim(x, self.before, self.before + self.length, axis=1)

    def at(self, x, shift):
        """Moves padded rows so that column i holds token i - shift."""
        return jax.lax.dynamic_slice_in_dim(x, self.before - shift, self.length, axis=1)

    def add_at(self, x, shift, update):
        """Adds to what `at` read."""
        begin = self.before - shift
        old = jax.lax.dynamic_slice_in_dim(x, begin, self.length, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(x, old + update, begin, axis=1)

    def allowed(self, shift):
        """Marks the queries that have a key at this distance."""
        key = jnp.arange(self.length, dtype=jnp.int32) - shift
        inside = (key >= self.start) & (key < self.end) & (self.positions >= 0)
        return inside[:, :, None, None]

    def last_allowed(self):
        """Marks the queries to which the sequence's last token is not already near enough."""
        ahead = self.last - jnp.arange(self.length, dtype=jnp.int32)
        return ((ahead >= self.window) & (self.positions >= 0))[:, :, None, None]

    def last_of(self, x):
        """Reads the last token of each query's sequence from unpadded [B, L, G, D]."""
        return jnp.take_along_axis(x, self.last[:, :, None, None], axis=1)

    def add_last(self, x, update):
        """Adds to what `last_of` read."""
        return x.at[jnp.arange(self.batch)[:, None], self.last].add(update)

    def logits(self, k, allowed):
        """Scores one key a query: [B, L, G, R]."""
        return jnp.where(allowed, (self.q * k[:, :, :, None]).sum(-1) * self.size**-0.5, MASKED)


def _forward(q, k, v, positions, window, causal, max_history):
    row = _Row(q, k, v, positions, window, causal, max_history)

    def attend(carry, k_here, v_here, allowed):
        highest, total, out = carry
        logits = row.logits(k_here, allowed)
        now = jnp.maximum(highest, logits)
        keep, weight = jnp.exp(highest - now), jnp.where(allowed, jnp.exp(logits - now), 0)
        out = out * keep[..., None] + weight[..., None] * v_here[:, :, :, None]
        return now, total * keep + weight, out

    def step(carry, shift):
        here = row.at(row.k, shift), row.at(row.v, shift), row.allowed(shift)
        return attend(carry, *here), None

    zero = jnp.zeros(row.q.shape[:-1], row.q.dtype)
    carry = (zero + MASKED, zero, jnp.zeros_like(row.q))
    carry, _ = jax.lax.scan(step, carry, row.shifts)
    if not causal:
        last = row.last_of(row.trim(row.k)), row.last_of(row.trim(row.v)), row.last_allowed()
        carry = attend(carry, *last)
    highest, total, out = carry
    total = jnp.where(total > 0, total, 1)
    out = (out / total[..., None]).reshape(q.shape).astype(q.dtype)
    return out, highest + jnp.log(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _power_attention(q, k, v, positions, window, causal, max_history):
    return _forward(q, k, v, positions, window, causal, max_history)[0]


def _save(q, k, v, positions, window, causal, max_history):
    out, log_total = _forward(q, k, v, positions, window, causal, max_history)
    return out, (q, k, v, positions, out, log_total)


def _backward(window, causal, max_history, saved, d_out):
    q, k, v, positions, out, log_total = saved
    row = _Row(q, k, v, positions, window, causal, max_history)
    d_out = row.split(d_out)
    mean = (d_out * row.split(out)).sum(-1)

    def gradients(k_here, v_here, allowed):
        weight = jnp.where(allowed, jnp.exp(row.logits(k_here, allowed) - log_total), 0)
        d_logits = weight * ((d_out * v_here[:, :, :, None]).sum(-1) - mean) * row.size**-0.5
        d_query = d_logits[..., None] * k_here[:, :, :, None]
        return d_query, (d_logits[..., None] * row.q).sum(3), (weight[..., None] * d_out).sum(3)

    def step(carry, shift):
        dq, dk, dv = carry
        here = gradients(row.at(row.k, shift), row.at(row.v, shift), row.allowed(shift))
        return (dq + here[0], row.add_at(dk, shift, here[1]), row.add_at(dv, shift, here[2])), None

    carry = (jnp.zeros_like(row.q), jnp.zeros_like(row.k), jnp.zeros_like(row.v))
    (dq, dk, dv), _ = jax.lax.scan(step, carry, row.shifts)
    dk, dv = row.trim(dk), row.trim(dv)
    if not causal:
        last = row.last_of(row.trim(row.k)), row.last_of(row.trim(row.v)), row.last_allowed()
        here = gradients(*last)
        dq, dk, dv = dq + here[0], row.add_last(dk, here[1]), row.add_last(dv, here[2])
    return dq.reshape(q.shape).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_power_attention.defvjp(_save, _backward)


def power_attention(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    *,
    window: int,
    causal: bool,
    max_history: int,
) -> Float[Array, "B L H D"]:
    """See `pallas_kernels.power_attention`."""
    return _power_attention(q, k, v, positions, window, causal, max_history)
