"""Ranks of targets in a whole catalogue, by counting, a chunk of the items at a time.

Nobody's place in a ranking needs the ranking: it is enough to count the items that score more. So
scores exist for `chunk` items of each user at once, whatever the size of the catalogue, and each
device scores the items that it has.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from blossom_jax import metrics, sharding


class Catalogue(NamedTuple):
    """How the items are gone through.

    Attributes:
      num_items: V; item k stands in row k of the table, and other rows are no items.
      chunk: Items scored at once on each device.
      mesh: Devices over which users ("data") and rows of the table ("model") are split.
    """

    num_items: int
    chunk: int
    mesh: jax.sharding.Mesh


class UserRanks(NamedTuple):
    """Rank of each user's target by protocol, and its loss, see `protocol_metrics.Ranks`."""

    full: Float[Array, "B"]
    full_keep: Float[Array, "B"]
    sampled: Float[Array, "B P"]
    loss: Float[Array, "B"] | None


def rank_targets(
    hidden: Float[Array, "B M"],
    table: Float[Array, "R M"] | None,
    target: Int[Array, "B"],
    seen: Int[Array, "B S"],
    negatives: Int[Array, "B P N"],
    catalogue: Catalogue,
    *,
    with_loss: bool = True,
) -> UserRanks:
    """Ranks every user's target under all protocols.

    Args:
      hidden: What each user's history was encoded into.
      table: Item embeddings; None where `hidden` holds the scores already, item k in column k.
      target: The item that the user chose; 0 = nobody's row, whose ranks mean nothing.
      seen: Different items of each user's history, 0 = none.
      negatives: Other items by protocol, from `negatives.draw`; 0 = none.
      catalogue: Its size, and how it is gone through.
      with_loss: Whether scores are logits, so that a softmax of them means something.

    Returns:
      Ranks from 1, in halves, inf = a miss; they are exact up to 2**23. And, if asked for, -log
      softmax of the target's score over the catalogue, in nats.
    """
    rank = functools.partial(_rank, catalogue=catalogue, with_loss=with_loss)
    return _on_all_devices(rank, catalogue, num_arrays=5)(hidden, table, target, seen, negatives)


def first_places(
    hidden: Float[Array, "B M"],
    table: Float[Array, "R M"] | None,
    seen: Int[Array, "B S"],
    catalogue: Catalogue,
    *,
    k: int,
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """Finds every user's k best items, of equal ones those with the lower numbers.

    Args:
      hidden: As in `rank_targets`, and so are the next ones.
      table: Likewise.
      seen: Items that are left out, besides 0.
      catalogue: Likewise.
      k: Places, at most the number of items.

    Returns:
      Scores, -inf where there is no item or its score is not a number, and items.
    """
    find = functools.partial(_first_places, catalogue=catalogue, k=k)
    return _on_all_devices(find, catalogue, num_arrays=3)(hidden, table, seen)


def _on_all_devices(function: Callable[..., Any], catalogue: Catalogue, *, num_arrays: int):
    others = (sharding.ROWS,) * (num_arrays - 2)
    return jax.shard_map(
        function,
        mesh=catalogue.mesh,
        in_specs=(sharding.ROWS, sharding.TABLE_ROWS, *others),
        out_specs=sharding.ROWS,
        check_vma=False,  # what all_gather and psum return is the same everywhere on "model"
    )


class _Chunk(NamedTuple):
    scores: Float[Array, "B C"]
    item: Int[Array, "C"]
    counts: Bool[Array, "C"]  # whether it is an item, and in no earlier chunk


def _over_chunks(step: Callable[[_Chunk, Any], Any], state: Any, hidden, table, catalogue) -> Any:
    """Lets `step` turn the state into the next one, for every chunk of a device's items."""
    num_rows = hidden.shape[1] if table is None else table.shape[0]
    size = min(catalogue.chunk, num_rows)
    first = num_rows * lax.axis_index(sharding.MODEL)

    def step_of(i, state):
        begin = jnp.minimum(i * size, num_rows - size)  # the last chunk repeats rows
        scores = _scores(hidden, table, begin, size)
        row = begin + jnp.arange(size)
        item = first + row
        is_item = (item >= 1) & (item <= catalogue.num_items)
        return step(_Chunk(scores, item, is_item & (row >= i * size)), state)

    if size == num_rows:
        return step_of(0, state)  # in the open, so that XLA forms the scores once for all passes
    return lax.fori_loop(0, -(-num_rows // size), step_of, state)


def _scores(hidden, table, begin, size):
    if table is None:
        return lax.dynamic_slice_in_dim(hidden, begin, size, axis=1)
    rows = lax.dynamic_slice_in_dim(table, begin, size)
    # The GPU's default would round f32 inputs to 10 bits, and so make ties.
    exact = lax.Precision.HIGHEST
    return jnp.einsum("bm,cm->bc", hidden.astype(jnp.float32), rows, precision=exact)


def _rank(hidden, table, target, seen, negatives, *, catalogue, with_loss) -> UserRanks:
    # Scores that are compared come from the same product, so that equal items have equal scores.
    drawn = negatives.reshape(len(negatives), -1)
    wanted = jnp.concatenate([target[:, None], drawn, seen], axis=1)

    def pick(chunk, picked):
        column = wanted - chunk.item[0]
        found = jnp.take_along_axis(chunk.scores, jnp.clip(column, 0, len(chunk.item) - 1), axis=1)
        is_here = (column >= 0) & (column < len(chunk.item))
        return jnp.where(is_here, found, picked)

    zeros = jnp.zeros(wanted.shape)
    picked = lax.psum(_over_chunks(pick, zeros, hidden, table, catalogue), sharding.MODEL)
    own, others, of_seen = jnp.split(picked, [1, 1 + drawn.shape[1]], axis=1)

    def count(chunk, state):
        ahead, log_total = state
        counts = chunk.counts & (chunk.item != target[:, None])
        ahead += _sum(metrics.ahead(chunk.scores, own), counts)
        if with_loss:
            logits = jnp.where(chunk.counts, chunk.scores, -jnp.inf)
            log_total = jnp.logaddexp(log_total, jax.nn.logsumexp(logits, axis=1))
        return ahead, log_total

    nothing = jnp.zeros(target.shape), jnp.full(target.shape, -jnp.inf)
    ahead, log_total = _over_chunks(count, nothing, hidden, table, catalogue)
    full_keep = 1 + lax.psum(ahead, sharding.MODEL)
    log_total = jax.nn.logsumexp(lax.all_gather(log_total, sharding.MODEL), axis=0)
    is_seen = (seen > 0) & (seen != target[:, None])
    new = full_keep - _sum(metrics.ahead(of_seen, own), is_seen)
    full = jnp.where((seen == target[:, None]).any(axis=1), jnp.inf, new)
    sampled = 1 + _sum(metrics.ahead(others, own).reshape(negatives.shape), negatives > 0)
    is_nan = jnp.isnan(own[:, 0])
    return UserRanks(
        full=jnp.where(is_nan, jnp.inf, full),
        full_keep=jnp.where(is_nan, jnp.inf, full_keep),
        sampled=jnp.where(is_nan[:, None], jnp.inf, sampled),
        loss=log_total - own[:, 0] if with_loss else None,
    )


def _sum(values, where):
    # In f32, which XLA's CPU sums up ten times faster than integers.
    return jnp.sum(jnp.where(where, values, 0), axis=-1)


def _first_places(hidden, table, seen, *, catalogue, k):
    def merge(chunk, best):
        column = seen - chunk.item[0]
        is_here = (column >= 0) & (column < len(chunk.item)) & (seen > 0)
        new = metrics.without_seen(chunk.scores, jnp.where(is_here, column, len(chunk.item)))
        value = jnp.where(chunk.counts & ~jnp.isnan(new), new, -jnp.inf)
        item = jnp.broadcast_to(chunk.item, value.shape)
        values, items = best
        return _best(
            jnp.concatenate([values, value], axis=1), jnp.concatenate([items, item], axis=1), k
        )

    num_users = hidden.shape[0]
    best = jnp.full((num_users, k), -jnp.inf), jnp.zeros((num_users, k), jnp.int32)
    best = _over_chunks(merge, best, hidden, table, catalogue)
    gather = functools.partial(lax.all_gather, axis_name=sharding.MODEL, axis=1, tiled=True)
    return _best(gather(best[0]), gather(best[1]), k)


def _best(value, item, k):
    value, place = lax.top_k(value, k)  # of equal ones the first: those with the lower numbers
    return value, jnp.take_along_axis(item, place, axis=1)
