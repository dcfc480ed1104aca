"""Recommends by an exported BlossomRec model. Needs jax, numpy and flatbuffers, nothing else.

    python load.py 1193,661,914

    model = load("the folder that this file is in")
    model.recommend([["1193", "661"], ["914"]], top_k=10)

The model runs on whatever jax runs on: it was exported for CPUs, NVIDIA GPUs and TPUs.
"""

import json
import pathlib
import sys

import jax
import jax.export
import numpy as np


class Model:
    """An exported model.

    Attributes:
      item_ids: Raw ids; that of item k stands at k - 1.
      counts: How often each occurs in what was trained on.
      max_length: Events that the model sees, at most.
      params: {name: array}, the first argument of `program`.
      program: `program.call(params, item_ids [b, l], positions [b, l]) -> scores [b, items + 1]`
        of the item after the last one; positions count from 0, and are -1 at padding.
    """

    def __init__(self, directory):
        directory = pathlib.Path(directory)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        items = json.loads((directory / "items.json").read_text(encoding="utf-8"))
        self.item_ids, self.counts = items["item_ids"], np.array(items["counts"])
        self._lengths = config["export"]["lengths"]
        self.max_length = self._lengths[-1]
        self._numbers = {raw: number for number, raw in enumerate(self.item_ids, start=1)}
        with np.load(directory / "params.npz") as arrays:
            self.params = {name: jax.device_put(arrays[name]) for name in arrays.files}
        serialized = bytearray((directory / "program.stablehlo").read_bytes())
        self.program = jax.export.deserialize(serialized)
        self._call = jax.jit(self.program.call)

    def unknown(self, history):
        """Returns those raw ids of a history that the catalogue does not have."""
        return [raw for raw in history if str(raw) not in self._numbers]

    def scores(self, histories):
        """Scores every item as the next one.

        Args:
          histories: Lists of item numbers from 1, in time order, none empty.

        Returns:
          f32 [len(histories), num_items + 1]; item k in column k, and nothing in column 0.
        """
        longest = min(max(map(len, histories)), self.max_length)
        length = next(each for each in self._lengths if each >= longest)
        rows = 1 << (len(histories) - 1).bit_length()  # so that few programs are compiled
        item_ids = np.zeros((rows, length), np.int32)
        positions = np.full((rows, length), -1, np.int32)
        for row, history in enumerate(histories):
            seen = history[-self.max_length :]
            item_ids[row, : len(seen)], positions[row, : len(seen)] = seen, range(len(seen))
        return np.asarray(self._call(self.params, item_ids, positions))[: len(histories)]

    def recommend(self, histories, top_k=10, *, exclude_seen=True):
        """Recommends items.

        Args:
          histories: Lists of raw ids, in time order. Unknown ones are skipped; a history without a
            known one gets the items that occur most often in what was trained on.
          top_k: Items for each.
          exclude_seen: Whether items of the history are left out.

        Returns:
          For each history [(raw id, score), ...], the best first.
        """
        known = [
            [self._numbers[str(raw)] for raw in history if str(raw) in self._numbers]
            for history in histories
        ]
        scores = np.tile(np.concatenate([[0], self.counts]).astype(np.float32), (len(known), 1))
        present = [row for row, history in enumerate(known) if history]
        if present:
            scores[present] = self.scores([known[row] for row in present])
        scores[:, 0] = -np.inf
        for row, history in enumerate(known):
            if exclude_seen:
                scores[row, history] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            [(self.item_ids[k - 1], float(row[k])) for k in best if row[k] > -np.inf]
            for row, best in zip(scores, order, strict=True)
        ]


def load(directory=None):
    """Opens an export; by default the one that this file lies in."""
    return Model(directory or pathlib.Path(__file__).parent)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} ID,ID,...  (raw ids, the last event last)")
    model, asked = load(), sys.argv[1].split(",")
    if skipped := model.unknown(asked):
        names = ", ".join(skipped)
        print(f"skipped, since the catalogue does not have them: {names}", file=sys.stderr)
    if len(skipped) == len(asked):
        print("none is known: popular items, with how often they occur", file=sys.stderr)
    for raw_id, score in model.recommend([asked])[0]:
        print(f"{score:10.4f}  {raw_id}")
