"""Recommends items for histories of raw ids, by a trained model."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from blossom_jax import evaluate, metrics, sharding, trained_model
from blossom_jax.data.history_batches import Histories, history_batches
from blossom_jax.errors import UserError
from blossom_jax.incremental_recommender import IncrementalRecommender
from blossom_jax.trained_model import TrainedModel
from blossom_jax.user_states import UserState

RawId = str | int
Scored = list[tuple[str, float]]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is recommended for one history.

    Attributes:
      items: (raw id, score), the best first.
      unknown: Ids of the history that the model does not know, and that were skipped.
      is_popular: True where no known item was left, so that these are the items that occur most
        often in what was trained on, each with its count for a score.
    """

    items: Scored
    unknown: list[str]
    is_popular: bool


class Recommender:
    """Ranks the catalogue for any histories; compiled for a few sizes of batch."""

    def __init__(
        self, model: TrainedModel, *, batch_users: int = 128, max_events: int | None = None
    ):
        """Prepares the program; nothing is compiled yet.

        Args:
          model: From `trained_model.load`.
          batch_users: Histories of up to 64 events that are scored at once; longer ones come in
            smaller batches. For fewer, as many are scored, so 1 is the fastest for one at a time.
          max_events: Most events of a user that `start` and `step` keep; by default, and at most,
            the model's `max_length`.

        Raises:
          UserError: `batch_users` does not divide by the devices that share a batch.
        """
        devices = model.mesh.size
        if batch_users < 1 or batch_users % devices:
            raise UserError(
                f"batch_users must be a positive multiple of the {devices} device(s) that share "
                f"a batch, got {batch_users}"
            )
        self.model = model
        self.catalogue = model.catalogue
        self._max_events = max_events
        self._sizes = {
            "max_length": model.model_config.history_length,
            "batch_users": batch_users,
            "multiple_of": devices,
            "gap": model.model_config.appended,
        }
        self._best = jax.jit(_best_items(model), static_argnames="k")

    @classmethod
    def load(
        cls,
        directory: str | pathlib.Path,
        *,
        step: int | None = None,
        batch_users: int = 128,
        max_events: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> "Recommender":
        """Opens the workdir of a run, or an export.

        Args:
          directory: What `experiments.train` or `experiments.export` wrote.
          step: Of the checkpoint; None takes the best of the run.
          batch_users: See `Recommender`.
          max_events: See `Recommender`.
          mesh: Devices to compute on; None takes the first one.

        Raises:
          UserError: See `trained_model.load`.
        """
        model = trained_model.load(directory, step=step, mesh=mesh)
        return cls(model, batch_users=batch_users, max_events=max_events)

    def recommend(
        self,
        histories: Iterable[Sequence[RawId]],
        top_k: int = 10,
        *,
        exclude_seen: bool = True,
        exclude: Iterable[RawId] = (),
        allow: Iterable[RawId] | None = None,
    ) -> list[Scored]:
        """Recommends items; logs which ids are unknown, and who is shown popular items instead.

        Args:
          histories: Raw ids of each user, in time order. The model sees the last `max_length`.
          top_k: Items for each; fewer where fewer may be recommended.
          exclude_seen: Whether items of a user's own history, however long, are left out.
          exclude: Items that nobody is recommended.
          allow: The only items that anybody is recommended; None allows all.

        Returns:
          For each history (raw id, score), the best first. An empty history, or one of unknown
          ids alone, gets the items that occur most often in what was trained on.

        Raises:
          UserError: `top_k` is below 1, or nothing of `allow` is known.
        """
        answers = self.answer(
            histories, top_k, exclude_seen=exclude_seen, exclude=exclude, allow=allow
        )
        unknown = [raw for answer in answers for raw in answer.unknown]
        if unknown:
            _log.warning("skipped %s", describe_unknown(unknown))
        if popular := sum(answer.is_popular for answer in answers):
            _log.warning(
                "%d of %d histories hold no known item: they get popular items",
                popular,
                len(answers),
            )
        return [answer.items for answer in answers]

    def answer(
        self,
        histories: Iterable[Sequence[RawId]],
        top_k: int = 10,
        *,
        exclude_seen: bool = True,
        exclude: Iterable[RawId] = (),
        allow: Iterable[RawId] | None = None,
    ) -> list[Answer]:
        """Recommends items, and tells of each history what became of it. See `recommend`."""
        allowed = self.allowed(exclude, allow)
        return self.answer_allowed(histories, top_k, allowed, exclude_seen=exclude_seen)

    def allowed(
        self, exclude: Iterable[RawId] = (), allow: Iterable[RawId] | None = None
    ) -> Bool[np.ndarray, "items"]:
        """Says which items may be recommended; logs which of the ids are unknown.

        Args:
          exclude: Items that nobody is recommended.
          allow: The only items that anybody is recommended; None allows all.

        Returns:
          bool[num_items + 1], item k at k.

        Raises:
          UserError: Nothing of `allow` is known.
        """
        allowed = np.full(self.catalogue.num_items + 1, allow is None)
        if allow is not None:
            known = self._known("allow", allow)
            if not known:
                raise UserError("nothing would be recommended: no id of allow is in the catalogue")
            allowed[known] = True
        allowed[[0, *self._known("exclude", exclude)]] = False
        return allowed

    def _known(self, name: str, raw_ids: Iterable[RawId]) -> list[int]:
        known, unknown = self.catalogue.known(raw_ids)
        if unknown:
            _log.warning("skipped in %s: %s", name, describe_unknown(unknown))
        return known

    def answer_allowed(
        self,
        histories: Iterable[Sequence[RawId]],
        top_k: int,
        allowed: Bool[np.ndarray, "items"],
        *,
        exclude_seen: bool = True,
    ) -> list[Answer]:
        """Recommends some of the items, see `answer`.

        Args:
          histories: Raw ids of each user.
          top_k: Items for each.
          allowed: From `allowed`.
          exclude_seen: See `recommend`.

        Raises:
          UserError: `top_k` is below 1.
        """
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, got {top_k}")
        k = min(_round_up(top_k), self.catalogue.num_items)
        read = [self.catalogue.known(history) for history in histories]
        numbers = [np.array(known, np.int32) for known, _ in read]
        present = [i for i, known in enumerate(numbers) if len(known)]
        ranked = self._rank([numbers[i] for i in present], k, allowed, exclude_seen)
        items = dict(zip(present, ranked, strict=True))
        popular = self._popular(k, allowed) if len(present) < len(read) else []
        return [
            Answer(items.get(i, popular)[:top_k], unknown, i not in items)
            for i, (_, unknown) in enumerate(read)
        ]

    def start(self, history: Sequence[RawId]) -> UserState:
        """Returns the state of one user, to be continued by `step`.

        Args:
          history: Raw ids in time order, of which the last `max_events` are read; it may be empty.
            Ids that the model does not know are skipped, and logged.

        Raises:
          UserError: A model that cannot take one event at a time, or `max_events` out of range.
        """
        return self.incremental.start(self._known("history", history))

    def step(self, state: UserState, item: RawId) -> tuple[UserState, Float[Array, "items"]]:
        """Takes one more event of a user, at a cost that hardly grows with the history.

        Args:
          state: From `start` or the last step; it is used up.
          item: Raw id.

        Returns:
          The state with this event, and f32 scores of all items as the next one, item k at k.
          `best` names the best of them.

        Raises:
          UserError: An unknown item, a state of another model, or one that was used up.
        """
        known, _ = self.catalogue.known([item])
        if not known:
            raise UserError(
                f"the model does not know item {item!r}; skip it, the state is as it was"
            )
        return self.incremental.step(state, known[0])

    def best(
        self,
        scores: Float[Array, "items"],
        top_k: int = 10,
        *,
        exclude: Iterable[RawId] = (),
    ) -> Scored:
        """Names the best items by the scores of a step.

        Args:
          scores: Of all items, item k at k.
          top_k: Items to name.
          exclude: Items to leave out, those of the user's history say.

        Returns:
          (raw id, score), the best first.
        """
        allowed = self.allowed(exclude)
        best = _top(scores, allowed, k=min(_round_up(top_k), self.catalogue.num_items))
        return self._scored(*map(np.asarray, best))[:top_k]

    @functools.cached_property
    def incremental(self) -> IncrementalRecommender:
        """What `start` and `step` use, by numbers of items, for several users at once too."""
        model = nnx.merge(self.model.graphdef, self.model.params)
        return IncrementalRecommender(model, max_events=self._max_events)

    def _rank(self, histories, k, allowed, exclude_seen) -> list[Scored]:
        """Ranks items for histories of numbers, none of which is empty."""
        if not histories:
            return []
        end = np.cumsum([len(history) for history in histories])
        begin = np.concatenate([[0], end[:-1]])
        place = sharding.batch_sharding(self.model.mesh)
        allowed = jax.device_put(allowed, sharding.replicated(self.model.mesh))
        found = []
        batches = history_batches(Histories(np.concatenate(histories), begin, end), **self._sizes)
        for batch in batches:
            user = batch.pop("history")
            if not exclude_seen:
                batch["seen"] = np.zeros_like(batch["seen"])
            inputs = jax.device_put(batch, place)
            # The device is still at work when the next batch is made.
            found.append((user, self._best(self.model.params, inputs, allowed, k=k)))
        ranked = {}
        for user, best in found:
            scores, items = map(np.asarray, best)
            ranked |= {i: self._scored(scores[u], items[u]) for u, i in enumerate(user) if i >= 0}
        return [ranked[i] for i in range(len(histories))]

    def _popular(self, k: int, allowed: Bool[np.ndarray, "items"]) -> Scored:
        items = self.catalogue.by_popularity
        items = items[allowed[items]][:k]
        return self._scored(self.catalogue.counts[items - 1], items)

    def _scored(self, scores, items) -> Scored:
        """Pairs raw ids with scores, without what may not be recommended."""
        ids = self.catalogue.item_ids
        return [
            (str(ids[item - 1]), score)
            for item, score in zip(items.tolist(), scores.astype(float).tolist(), strict=True)
            if score != -np.inf
        ]


def _round_up(top_k: int) -> int:
    """Returns 16, 64, 256, ...: places are few and cheap, a program for each number is not."""
    k = 16
    while k < top_k:
        k *= 4
    return k


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


def describe_unknown(raw_ids: Sequence[str], most: int = 5) -> str:
    """Counts unknown ids and names the first few."""
    distinct = list(dict.fromkeys(raw_ids))
    named = ", ".join(map(repr, distinct[:most])) + (", ..." if len(distinct) > most else "")
    return f"{len(distinct)} id(s) that the model does not know: {named}"
