"""Items by their neighbours: those with which they share users (item-based kNN by cosine)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Float32, Int32

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.ragged import distinct, ragged_arange
from blossom_jax.data.split import Split
from pallas_kernels.positions import sequence_end

_ROWS = 1024  # items whose similarities to all others exist at once


class Neighbours(NamedTuple):
    """The K items most similar to each item; where there are fewer, item 0 with similarity 0.

    Attributes:
      items: int32[V + 1, K], by falling similarity.
      similarity: float32[V + 1, K], the cosine.
    """

    items: Int32[np.ndarray, "catalogue K"]
    similarity: Float32[np.ndarray, "catalogue K"]


def item_neighbours(
    interactions: Interactions, split: Split, *, num_neighbours: int = 100
) -> Neighbours:
    """Finds each item's neighbours in what is trained on.

    The similarity of two items is the cosine between the sets of their users: the number of users
    they share over the geometric mean of the numbers they have.

    Args:
      interactions: A prepared log.
      split: Says what is trained on.
      num_neighbours: K.
    """
    begin, size = interactions.offsets[:-1], interactions.num_items + 1
    user, event = ragged_arange(split.train_end - begin)
    pairs = distinct(user * size + interactions.items[begin[user] + event])
    ones = np.ones(len(pairs), np.float32)
    users = scipy.sparse.csc_array((ones, np.divmod(pairs, size)), (interactions.num_users, size))
    num_users = np.bincount(pairs % size, minlength=size)
    norm = np.sqrt(np.maximum(num_users, 1)).astype(np.float32)

    items = np.zeros((size, num_neighbours), np.int32)
    similarity = np.zeros((size, num_neighbours), np.float32)
    by_user = users.tocsr()
    for first in range(0, size, _ROWS):
        rows = np.arange(first, min(first + _ROWS, size))
        shared = (users[:, rows].T @ by_user).toarray() / (norm[rows, None] * norm)
        shared[np.arange(len(rows)), rows] = 0  # an item is no neighbour of itself
        best = np.argsort(-shared, axis=1, kind="stable")[:, :num_neighbours]
        found = np.take_along_axis(shared, best, axis=1)
        items[rows, : best.shape[1]] = np.where(found > 0, best, 0)
        similarity[rows, : best.shape[1]] = found
    return Neighbours(items, similarity)


def knn_scores(
    neighbours: Any, batch: dict[str, Any], *, decay: float
) -> Float[Array, "u catalogue"]:
    """Scores items by their similarity to the history, of which recent events count more.

    Args:
      neighbours: From `item_neighbours`.
      batch: From `evaluation_batches`: the events that a model would see.
      decay: Weight of an event over that of the next one; 0 = the last event alone counts.
    """
    positions, last = jnp.asarray(batch["positions"]), batch["last"]
    index = jnp.arange(positions.shape[1])
    end = sequence_end(positions)
    age = end - 1 - index
    weight = jnp.where(positions >= 0, decay ** age.astype(jnp.float32), 0)
    # Whose history each event is of: told at its last event, and read from there.
    users = jnp.arange(len(last), dtype=jnp.int32)
    told = jnp.zeros(positions.size, jnp.int32).at[last].set(users).reshape(positions.shape)
    user = jnp.take_along_axis(told, end - 1, axis=1)
    near, similarity = (jnp.asarray(values)[batch["item_ids"]] for values in neighbours)
    scores = jnp.zeros((len(last), len(neighbours[0])))
    return scores.at[user[:, :, None], near].add(similarity * weight[:, :, None])  # [b, l, K]
