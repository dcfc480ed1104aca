"""Scores every item as a user's next one, event by event."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from blossom_jax import incremental
from blossom_jax.errors import UserError
from blossom_jax.model import BlossomRec
from blossom_jax.user_states import UserState, model_hash

Item = int | np.integer
Items = Sequence[Item] | Int[np.ndarray, "_"]


class IncrementalRecommender:
    """Continues users' histories by one event at a time, at a cost that hardly grows with them.

    Items are numbered as in the model, 1..num_items.
    """

    def __init__(self, model: BlossomRec, *, max_events: int | None = None):
        """Prepares the programs; each is compiled once for each capacity and number of users.

        Args:
          model: Its parameters are read now: a model that is trained further needs a new object.
          max_events: Most events of a user to keep, by default the model's `max_length`. Memory
            grows with it, and with less of it the scores are approximate, see
            `blossom_jax.incremental`.

        Raises:
          UserError: A model that looks ahead, or a `max_events` out of its range.
        """
        self.max_events = model.config.max_length if max_events is None else max_events
        incremental.check(model.config, self.max_events)
        self.model_hash = model_hash(model)
        self._capacities = incremental.capacities(model.config, self.max_events)
        self._num_items = model.num_items
        graphdef, self._params = nnx.split(model, nnx.Param)

        def start(params, item_ids, num_events):
            return incremental.start(nnx.merge(graphdef, params), item_ids, num_events)

        def encode(params, arrays, item_ids):
            model = nnx.merge(graphdef, params)
            event = incremental.encode(model, arrays, item_ids, max_events=self.max_events)
            return event, model.scores(event.hidden)

        self._start = jax.jit(start)
        self._encode = jax.jit(encode)
        self._append = jax.jit(incremental.append, donate_argnums=0)
        self._grow = jax.jit(incremental.grow, static_argnums=1)
        self._scores = jax.jit(lambda params, hidden: nnx.merge(graphdef, params).scores(hidden))

    def start(self, history: Items) -> UserState:
        """Returns the state of one user, see `start_many`."""
        return self.start_many([history])

    def step(self, state: UserState, item: Item) -> tuple[UserState, Float[Array, "items"]]:
        """Takes one event of one user, see `step_many`."""
        state, scores = self.step_many(state, [item])
        return state, scores[0]

    def start_many(self, histories: Sequence[Items]) -> UserState:
        """Encodes the histories of users who are then continued together.

        Args:
          histories: Items of each user, the oldest first; of long ones the last `max_events` are
            read. They may be empty.

        Raises:
          UserError: An item that the model does not know, or no history.
        """
        if not histories:
            raise UserError("there is no user to begin with: histories is empty")
        kept = [self._checked(history)[-self.max_events :] for history in histories]
        num_events = tuple(map(len, kept))
        item_ids = np.zeros((len(kept), self._capacity(max(num_events))), np.int32)
        for row, history in zip(item_ids, kept, strict=True):
            row[: len(history)] = history
        arrays = self._start(self._params, item_ids, np.asarray(num_events, np.int32))
        return UserState(arrays, num_events, self.max_events, self.model_hash)

    def step_many(
        self, state: UserState, items: Items
    ) -> tuple[UserState, Float[Array, "B items"]]:
        """Takes one event of each user.

        Args:
          state: From `start_many` or from the last step; it is used up.
          items: One for each user of the state.

        Returns:
          The state with these events, and f32 scores of items 0..num_items as the next one; that of
          0, which is padding, means nothing.

        Raises:
          UserError: A state of another model or one that was used up, or an unknown item.
        """
        state.check(self.model_hash, self.max_events)
        if len(items) != len(state.num_events):
            raise UserError(f"{len(items)} items for the {len(state.num_events)} users of a state")
        item_ids = self._checked(items)
        capacity = self._capacity(max(state.num_events) + 1)
        arrays = state.arrays
        if capacity > arrays.capacity:
            arrays = self._grow(arrays, capacity)
        event, scores = self._encode(self._params, arrays, item_ids)
        arrays = self._append(arrays, event)
        num_events = tuple(number + 1 for number in state.num_events)
        return UserState(arrays, num_events, self.max_events, self.model_hash), scores

    def scores(self, state: UserState) -> Float[Array, "B items"]:
        """Returns what the last step returned, or would have; a user needs one event at least.

        Raises:
          UserError: As `step_many`, and for a user without events.
        """
        state.check(self.model_hash, self.max_events)
        if not all(state.num_events):
            raise UserError("a user without events has no scores; recommend popular items instead")
        return self._scores(self._params, state.arrays.hidden)

    def _capacity(self, num_events: int) -> int:
        return next((c for c in self._capacities if c >= num_events), self._capacities[-1])

    def _checked(self, items: Items) -> np.ndarray:
        item_ids = np.asarray(items, np.int64)
        unknown = item_ids[(item_ids < 1) | (item_ids > self._num_items)]
        if unknown.size:
            raise UserError(
                f"item {unknown[0]} is unknown: this model's items are 1..{self._num_items}"
            )
        return item_ids.astype(np.int32)
