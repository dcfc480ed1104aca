"""Recommends items for histories of raw ids, by a trained model."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from blossom_jax import trained_model
from blossom_jax.catalogue import describe_unknown
from blossom_jax.errors import UserError
from blossom_jax.incremental_recommender import IncrementalRecommender
from blossom_jax.top_items import TopItems, top
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
        self.model = model
        self.catalogue = model.catalogue
        self._max_events = max_events
        self._top_items = TopItems(model, batch_users)

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
          UserError: `top_k` is below 1, a history is no list, or nothing of `allow` is known.
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
        allowed = self.catalogue.allowed(exclude, allow)
        return self.answer_allowed(histories, top_k, allowed, exclude_seen=exclude_seen)

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
          allowed: From `Catalogue.allowed`.
          exclude_seen: See `recommend`.

        Raises:
          UserError: `top_k` is below 1, or a history is no list.
        """
        if top_k < 1:
            raise UserError(f"top_k must be at least 1, got {top_k}")
        histories = list(histories)
        for history in histories:
            if isinstance(history, str):  # its letters would be taken for ids
                raise UserError(f"histories must be lists of raw ids, one a user, got {history!r}")
        read = [self.catalogue.known(history) for history in histories]
        numbers = [np.array(known, np.int32) for known, _ in read]
        present = [i for i, known in enumerate(numbers) if len(known)]
        ranked = self._top_items.of_histories(
            [numbers[i] for i in present], top_k, allowed, exclude_seen=exclude_seen
        )
        items = {i: self._scored(*best) for i, best in zip(present, ranked, strict=True)}
        popular = self._popular(top_k, allowed) if len(present) < len(read) else []
        return [
            Answer(items.get(i, popular), unknown, i not in items)
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
        return self.incremental.start(self.catalogue.known_of("history", history))

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
        return self._scored(*top(scores, self.catalogue.allowed(exclude), top_k))

    @functools.cached_property
    def incremental(self) -> IncrementalRecommender:
        """What `start` and `step` use, by numbers of items, for several users at once too."""
        model = nnx.merge(self.model.graphdef, self.model.params)
        return IncrementalRecommender(model, max_events=self._max_events)

    def _popular(self, top_k: int, allowed: Bool[np.ndarray, "items"]) -> Scored:
        items = self.catalogue.by_popularity
        items = items[allowed[items]][:top_k]
        return self._scored(self.catalogue.counts[items - 1], items)

    def _scored(self, scores, items) -> Scored:
        """Pairs raw ids with scores, without what may not be recommended."""
        ids = self.catalogue.item_ids
        return [
            (str(ids[item - 1]), score)
            for item, score in zip(items.tolist(), scores.astype(float).tolist(), strict=True)
            if score != -np.inf
        ]
