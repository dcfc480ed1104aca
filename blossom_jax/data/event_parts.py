"""The events of a log on disk, in parts that fit into memory one at a time.

Polars sorts in memory, so a log larger than that is not sorted as a whole: its users are dealt out
over parts, and each part is sorted alone. A log that is small is one part.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

EVENT = np.dtype([("user", np.int32), ("item", np.int32), ("time", np.int64)])
PART_EVENTS = 2**22  # 64 MiB; a part has fewer, and one user's more


class EventParts:
    """Events of coded users, items and times; each user's are in one part, users ascending."""

    def __init__(self, folder: str | pathlib.Path, user_counts: Int[np.ndarray, "users"]):
        """Deals the users out.

        Args:
          folder: An empty one, to keep the parts in.
          user_counts: Events of each user, by code from 0.
        """
        before = np.cumsum(user_counts) - user_counts
        self._part_of_user = before // PART_EVENTS
        num_parts = int(self._part_of_user[-1]) + 1 if len(before) else 0
        self._paths = [pathlib.Path(folder) / f"{part}.events" for part in range(num_parts)]
        for path in self._paths:
            path.touch()

    def append(self, events: np.ndarray) -> None:
        """Adds events of any users, in file order.

        Args:
          events: Array of `EVENT`.
        """
        part = self._part_of_user[events["user"]]
        order = np.argsort(part, kind="stable")
        events, bounds = events[order], np.searchsorted(part[order], range(len(self._paths) + 1))
        for path, begin, end in zip(self._paths, bounds[:-1], bounds[1:], strict=True):
            if end > begin:
                with path.open("ab") as file:
                    events[begin:end].tofile(file)

    def sort(self, *, newest_first: bool) -> None:
        """Sorts each user's events by time; equal times keep file order.

        Args:
          newest_first: Whether the file runs backwards in time, so that its order is reversed.
        """
        for part, events in enumerate(self):
            ordered = events[::-1] if newest_first else events
            self.replace(part, ordered[np.lexsort((ordered["time"], ordered["user"]))])

    def replace(self, part: int, events: np.ndarray) -> None:
        """Puts other events of the same users in the place of a part."""
        events.tofile(self._paths[part])

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields one part after another, as an array of `EVENT`."""
        for path in self._paths:
            yield np.fromfile(path, EVENT)
