"""What a trained model knows of its items: raw ids, and how often each was trained on."""

import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from blossom_jax.errors import UserError

FILE = "items.json"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """The items that a model was trained on.

    Attributes:
      dataset: Name of the data set.
      item_ids: V raw ids; that of item k stands at k - 1.
      counts: int64[V], how often each occurs in what was trained on, in the same order.
    """

    dataset: str
    item_ids: Sequence[str]
    counts: Int[np.ndarray, "V"]

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.item_ids)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """The number of every raw id, from 1."""
        return {raw: number for number, raw in enumerate(self.item_ids, start=1)}

    @functools.cached_property
    def by_popularity(self) -> Int[np.ndarray, "V"]:
        """Numbers of the items, the most frequent first; equal ones in their order."""
        return 1 + np.argsort(-self.counts, kind="stable")

    def known(self, raw_ids: Iterable[str | int]) -> tuple[list[int], list[str]]:
        """Returns the numbers of the ids that are in the catalogue, and the ids that are not.

        Args:
          raw_ids: In any order; both results keep it. An int stands for its decimal digits.
        """
        raw = [str(each) for each in raw_ids]
        known = [self.numbers[each] for each in raw if each in self.numbers]
        return known, [each for each in raw if each not in self.numbers]

    def known_of(self, name: str, raw_ids: Iterable[str | int]) -> list[int]:
        """Returns the numbers of the ids that are in the catalogue, and logs which are not.

        Args:
          name: What the ids are, for the log.
          raw_ids: See `known`.
        """
        known, unknown = self.known(raw_ids)
        if unknown:
            _log.warning("skipped in %s: %s", name, describe_unknown(unknown))
        return known

    def allowed(
        self, exclude: Iterable[str | int] = (), allow: Iterable[str | int] | None = None
    ) -> Bool[np.ndarray, "items"]:
        """Says which items may be recommended; logs which of the ids are unknown.

        Args:
          exclude: Items that nobody is recommended.
          allow: The only items that anybody is recommended; None allows all.

        Returns:
          bool[num_items + 1], item k at k.

        Raises:
          UserError: Nothing of `allow` is known, or one of them is no list.
        """
        for name, raw_ids in (("allow", allow), ("exclude", exclude)):
            if isinstance(raw_ids, str):  # its letters would be taken for ids
                raise UserError(f"{name} must be a list of raw ids, got {raw_ids!r}")
        allowed = np.full(self.num_items + 1, allow is None)
        if allow is not None:
            known = self.known_of("allow", allow)
            if not known:
                raise UserError("nothing would be recommended: no id of allow is in the catalogue")
            allowed[known] = True
        allowed[[0, *self.known_of("exclude", exclude)]] = False
        return allowed


def describe_unknown(raw_ids: Sequence[str], most: int = 5) -> str:
    """Counts unknown ids and names the first few."""
    distinct = list(dict.fromkeys(raw_ids))
    named = ", ".join(map(repr, distinct[:most])) + (", ..." if len(distinct) > most else "")
    return f"{len(distinct)} id(s) that the model does not know: {named}"


def save(catalogue: Catalogue, folder: pathlib.Path) -> None:
    """Writes items.json into a folder, which it makes if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "dataset": catalogue.dataset,
        "item_ids": list(catalogue.item_ids),
        "counts": catalogue.counts.tolist(),
    }
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, folder / FILE)


def load(folder: pathlib.Path) -> Catalogue:
    """Reads items.json of a run or an export.

    Raises:
      UserError: There is none, or it is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        counts = np.array(content["counts"], np.int64)
        loaded = Catalogue(content["dataset"], content["item_ids"], counts)
        if counts.shape != (loaded.num_items,):
            raise ValueError(f"{loaded.num_items} item_ids, but counts of shape {counts.shape}")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); for a run, delete its results.json, if it "
            "has one, and run the same training command again, which writes the file"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return loaded
