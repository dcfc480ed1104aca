"""A user's state for incremental inference, and a store of many users' states."""

import collections
import dataclasses
import hashlib
from collections.abc import Hashable, Iterator, MutableMapping

import jax
import numpy as np
from flax import nnx

from blossom_jax import incremental
from blossom_jax.errors import UserError
from blossom_jax.model import BlossomRec


@dataclasses.dataclass(frozen=True)
class UserState:
    """What a recommender remembers of the histories of one or several users.

    Attributes:
      arrays: On the device; a step uses them up, and returns a state with new ones.
      num_events: Events of each user so far, those that left included.
      max_events: Most events of a user that are kept.
      model_hash: Of the model that made it.
    """

    arrays: incremental.State
    num_events: tuple[int, ...]
    max_events: int
    model_hash: str

    @property
    def num_bytes(self) -> int:
        """Bytes that the arrays take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.arrays))

    def check(self, model_hash: str, max_events: int) -> None:
        """Refuses to be continued by what did not make it, or twice.

        Args:
          model_hash: Of the model that is to continue it.
          max_events: Most events of a user that it keeps.

        Raises:
          UserError: Another model, another bound, or a state that a step has used up.
        """
        if self.model_hash != model_hash:
            raise UserError(
                f"this state was made by model {self.model_hash[:12]} and cannot be continued by "
                f"model {model_hash[:12]}: it was trained anew, or has other sizes; start again "
                "from the user's history"
            )
        if self.max_events != max_events:
            raise UserError(
                f"this state keeps at most {self.max_events} events, and this recommender "
                f"{max_events}; start again from the user's history"
            )
        if self.arrays.num_events.is_deleted():
            raise UserError(
                "this state was used up by an earlier step; continue with the one that it returned"
            )


def model_hash(model: BlossomRec) -> str:
    """Returns the sha256 of a model's config and parameters."""
    digest = hashlib.sha256(repr((model.config, model.num_items)).encode())
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        array = np.ascontiguousarray(variable[...])
        digest.update(repr((path, array.dtype, array.shape)).encode())
        digest.update(array.data)
    return digest.hexdigest()


class UserStates(MutableMapping[Hashable, UserState]):
    """Keeps the states of many users, the most recently used within a limit of bytes.

    It is a dict: `states[user] = state`, `states.pop(user)` to continue one, `del states[user]` to
    forget a user. What exceeds the limit is dropped, the least recently used first; such a user is
    started again from the history. It lives in the memory of one process: it writes nothing to
    disk, knows no history, and is not for several threads at once.
    """

    def __init__(self, max_bytes: int):
        """Starts empty.

        Args:
          max_bytes: Of all states together.
        """
        self._max_bytes = max_bytes
        self._states: collections.OrderedDict[Hashable, UserState] = collections.OrderedDict()
        self.num_bytes = 0

    def __getitem__(self, user: Hashable) -> UserState:
        self._states.move_to_end(user)
        return self._states[user]

    def __setitem__(self, user: Hashable, state: UserState) -> None:
        if state.num_bytes > self._max_bytes:
            raise UserError(
                f"a state of {state.num_bytes:,} bytes exceeds the limit of {self._max_bytes:,} "
                "bytes for all states together; raise max_bytes, or lower max_events"
            )
        self.pop(user, None)
        self._states[user] = state
        self.num_bytes += state.num_bytes
        while self.num_bytes > self._max_bytes:
            del self[next(iter(self._states))]

    def __delitem__(self, user: Hashable) -> None:
        self.num_bytes -= self._states.pop(user).num_bytes

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)
