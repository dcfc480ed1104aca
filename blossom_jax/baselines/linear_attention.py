"""LinRec: attention without a softmax, in time and memory linear in the length (arXiv 2411.01537).

Queries and keys are made by ELU and scaled to length 1 each, as in the released code, so that
`(q k^T) v` may be formed as `q (k^T v)`. A causal model needs that product of keys and values for
every prefix. Here chunks of tokens hand it on; inside a chunk it is a small masked attention.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blossom_jax.attention import Attention, split_heads
from pallas_kernels.positions import sequence_end, sequence_start

CHUNK = 64  # tokens; one number stands for each pair of a chunk


class LinearAttention(Attention):
    """Each token reads the values of its sequence, weighed by `q k / sqrt(D)` as it is."""

    def mix(self, x, qkv, positions, *, packed=True):
        """Attends inside each sequence; packed rows cost nothing."""
        del packed
        q, k, v = split_heads(qkv, positions, self.config)
        groups = self.config.num_heads // self.config.num_kv_heads
        q = _unit(jax.nn.elu(q)) / self.config.head_size**0.5
        k, v = jnp.repeat(_unit(jax.nn.elu(k)), groups, 2), jnp.repeat(v, groups, 2)

        start = sequence_start(positions)
        q, k, v = (jnp.where((positions >= 0)[:, :, None, None], y, 0) for y in (q, k, v))
        with jax.default_matmul_precision(self.config.precision.name.lower()):
            attended = read_prefixes(q, k, v, start)
            if not self.config.causal:
                # What comes after, by reading the rows from their ends; the token itself was read.
                last = positions.shape[1] - sequence_end(positions)
                q, k, v, last = (jnp.flip(y, 1) for y in (q, k, v, last))
                after = read_prefixes(q, k, v, last, with_itself=False)
                attended += jnp.flip(after, 1)
        return attended.reshape(x.shape)


def read_prefixes(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L H D"],
    v: Float[Array, "B L H D"],
    start: Int[Array, "B L"],
    *,
    with_itself: bool = True,
) -> Float[Array, "B L H D"]:
    """Sums `(q . k) v` over the tokens from each token's sequence start to the token.

    Args:
      q: Queries.
      k: Keys, zero at padding.
      v: Values.
      start: Index in the row of the first token of each token's sequence, any at padding.
      with_itself: Whether the token's own key and value take part.

    Returns:
      The sums, in the dtype of q.
    """
    length = q.shape[1]
    padding = -length % CHUNK
    index = jnp.arange(length + padding)

    def chunked(x):
        x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def read_chunk(earlier, chunk):
        """`earlier` [B, H, D, D] sums k v^T over the sequence that reaches into this chunk."""
        q, k, v, start, index = chunk
        same = _same_sequence(start, index, with_itself)
        near = jnp.where(same[:, None], jnp.einsum("bihd,bjhd->bhij", q, k), 0)
        read = jnp.einsum("bhij,bjhd->bihd", near, v)
        reaches = (start < index[0])[..., None, None].astype(q.dtype)
        read += jnp.einsum("bihd,bhde->bihe", q, earlier.astype(q.dtype)) * reaches

        goes_on = (start == start[:, -1:])[..., None, None].astype(k.dtype)
        added = jnp.einsum("bjhd,bjhe->bhde", k * goes_on, v, preferred_element_type=jnp.float32)
        return jnp.where(reaches[:, -1:], earlier, 0) + added, read

    b, _, h, d = q.shape
    chunks = (*map(chunked, (q, k, v, start)), index.reshape(-1, CHUNK))
    _, read = jax.lax.scan(read_chunk, jnp.zeros((b, h, d, d)), chunks)
    return jnp.moveaxis(read, 0, 1).reshape(b, -1, h, d)[:, :length]


def _same_sequence(start, index, with_itself: bool) -> Bool[Array, "B C C"]:
    """Tells which tokens of a chunk (last axis) stand in a token's sequence, and not after it."""
    before = jnp.tril(jnp.ones((CHUNK, CHUNK), bool), 0 if with_itself else -1)
    return (start[:, :, None] == start[:, None]) & before


def _unit(x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Scales vectors to length 1, in f32; zero stays zero, and its gradient finite."""
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(squares + 1e-12)).astype(x.dtype)
