"""Finds the best items for histories of item numbers, with a few compiled programs."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blossom_jax import evaluate, metrics, sharding
from blossom_jax.data.history_batches import Histories, history_batches
from blossom_jax.errors import UserError
from blossom_jax.trained_model import TrainedModel

Best = tuple[Float[np.ndarray, "k"], Int[np.ndarray, "k"]]  # scores, falling, and their items


class TopItems:
    """Ranks the catalogue for any histories; compiled for a few sizes of batch."""

    def __init__(self, model: TrainedModel, batch_users: int):
        """Prepares the program; nothing is compiled yet.

        Args:
          model: From `trained_model.load`.
          batch_users: See `recommender.Recommender`.

        Raises:
          UserError: `batch_users` does not divide by the devices that share a batch.
        """
        devices = model.mesh.size
        if batch_users < 1 or batch_users % devices:
            raise UserError(
                f"batch_users must be a positive multiple of the {devices} device(s) that share "
                f"a batch, got {batch_users}"
            )
        self._model = model
        self._sizes = {
            "max_length": model.model_config.history_length,
            "batch_users": batch_users,
            "multiple_of": devices,
            "gap": model.model_config.appended,
        }
        self._best = jax.jit(_best_items(model), static_argnames="k")

    def of_histories(
        self,
        histories: Sequence[Int[np.ndarray, "_"]],
        top_k: int,
        allowed: Bool[np.ndarray, "items"],
        *,
        exclude_seen: bool,
    ) -> list[Best]:
        """Returns the best items for each history.

        Args:
          histories: Items of each user, in time order; none is empty.
          top_k: Items for each.
          allowed: bool[num_items + 1], whether item k may be found at k.
          exclude_seen: Whether items of a user's own history are left out.

        Returns:
          For each history, its best items; those that may not be found score -inf, and come last.
        """
        if not histories:
            return []
        k = _round_up(top_k, self._model.catalogue.num_items)
        end = np.cumsum([len(history) for history in histories])
        begin = np.concatenate([[0], end[:-1]])
        place = sharding.batch_sharding(self._model.mesh)
        allowed = jax.device_put(allowed, sharding.replicated(self._model.mesh))
        found = []
        batches = history_batches(Histories(np.concatenate(histories), begin, end), **self._sizes)
        for batch in batches:
            user = batch.pop("history")
            if not exclude_seen:
                batch["seen"] = np.zeros_like(batch["seen"])
            inputs = jax.device_put(batch, place)
            # The device is still at work when the next batch is made.
            found.append((user, self._best(self._model.params, inputs, allowed, k=k)))
        ranked = {}
        for user, best in found:
            scores, items = (np.asarray(values)[:, :top_k] for values in best)
            ranked |= {i: (scores[u], items[u]) for u, i in enumerate(user) if i >= 0}
        return [ranked[i] for i in range(len(histories))]


def top(scores: Float[Array, "items"], allowed: Bool[np.ndarray, "items"], top_k: int) -> Best:
    """Returns the best items by their scores.

    Args:
      scores: f32[num_items + 1], of item k at k.
      allowed: Likewise, whether it may be found.
      top_k: Items to find.

    Returns:
      As `TopItems.of_histories` does for one history.
    """
    scores, items = _top(scores, allowed, k=_round_up(top_k, len(scores) - 1))
    return np.asarray(scores)[:top_k], np.asarray(items)[:top_k]


def _round_up(top_k: int, num_items: int) -> int:
    """Returns 16, 64, 256, ...: places are few and cheap, a program for each number is not."""
    k = 16
    while k < top_k:
        k *= 4
    return min(k, num_items)


def _best_items(model: TrainedModel):
    """Returns the function that ranks the catalogue for a batch."""
    score = evaluate.last_scores(model.graphdef)

    def best(
        params, batch: dict[str, Array], allowed: Bool[Array, "items"], *, k: int
    ) -> tuple[Float[Array, "u k"], Int[Array, "u k"]]:
        with sharding.traced_on(model.mesh):
            scores = score(params, batch)
        return _top(metrics.without_seen(scores, batch["seen"]), allowed, k=k)

    return best


@functools.partial(jax.jit, static_argnames="k")
def _top(scores, allowed, *, k: int):
    """Ranks what may be recommended; scores that are no numbers come last."""
    return jax.lax.top_k(jnp.where(allowed & ~jnp.isnan(scores), scores, -jnp.inf), k)
