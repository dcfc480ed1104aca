"""Evaluation: each user is encoded once and ranked under all protocols in the same pass."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from blossom_jax import memory, metrics, sharding
from blossom_jax.coverage import NOWHERE, coverage, note_places
from blossom_jax.data.history_batches import BatchShape
from blossom_jax.ranking import Catalogue, first_places, rank_targets

Params = Any  # a pytree
Batch = dict[str, Any]  # of arrays, from evaluation_batches
KS = (1, 5, 10, 20)
Encode = Callable[[Params, Batch], tuple[Float[Array, "b M"], Float[Array, "R M"] | None]]


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Rank of each user's target under each protocol; inf = a miss.

    Attributes:
      full: float64[n], among the items that are new to the user; a target that is not new is a
        miss.
      full_keep: float64[n], among all items.
      uniform: float64[n], among the target and `num_negatives` uniform others.
      num_items: V, size of the catalogue.
      num_negatives: Uniform items drawn for each user, the same at every evaluation.
      best_places: {"full": int32[V + 1], "full_keep": ..}, the best place of each item in the
        ranking of any user, from `coverage.note_places`; {} where it was not asked for.
    """

    full: Float[np.ndarray, "n"]
    full_keep: Float[np.ndarray, "n"]
    uniform: Float[np.ndarray, "n"]
    num_items: int
    num_negatives: int
    best_places: dict[str, Int[np.ndarray, "catalogue"]] = dataclasses.field(default_factory=dict)


def encode_last(graphdef: nnx.GraphDef) -> Encode:
    """Returns the function that encodes each user's history into what scores the next item.

    Args:
      graphdef: Of a BlossomRec, without its parameters.

    Returns:
      `(params, batch) -> (hidden, table)`, for `Evaluator`.
    """

    def encode(params, batch):
        model = nnx.merge(graphdef, params)
        hidden = model.encode_next(batch["item_ids"], batch["positions"])
        return sharding.laid_out(hidden, sharding.ROWS), model.item_embedding.embedding[...]

    return encode


def last_scores(graphdef: nnx.GraphDef) -> Callable[[Params, Batch], Float[Array, "b items"]]:
    """Returns the function that scores every item as the one after each user's history.

    Args:
      graphdef: Of a BlossomRec, without its parameters.
    """
    encode = encode_last(graphdef)

    def score(params, batch):
        hidden, _ = encode(params, batch)
        return sharding.laid_out(nnx.merge(graphdef, params).scores(hidden), sharding.BATCH_ROWS)

    return score


class Evaluator:
    """Ranks the targets of any users, for any parameters of one model."""

    def __init__(
        self,
        encode: Encode,
        *,
        num_items: int,
        mesh: jax.sharding.Mesh,
        ks: Sequence[int] = KS,
        chunk: int = 2**15,
    ):
        """Prepares one program; it is compiled once for each shape of batch.

        Args:
          encode: `(params, batch) -> (hidden [b, M], table [R, M])`: their products are the
            scores, item k at row k. Or (scores [b, R], None), where there is no table.
          num_items: V, size of the catalogue.
          mesh: Devices over which the users of a batch, and the table, are split.
          ks: Where the rankings are cut off whose coverage is asked for.
          chunk: Items that are scored at once on each device; it changes no rank.
        """
        self._num_items = num_items
        self._mesh = mesh
        num_places = min(max(ks), num_items)
        catalogue = Catalogue(num_items, chunk, mesh)

        def rank(params, batch, best_places, with_coverage):
            with sharding.traced_on(mesh):
                hidden, table = encode(params, batch)
            target, seen = batch["target"], batch["seen"]
            ranks = rank_targets(hidden, table, target, seen, batch["negatives"], catalogue)

            def note(best_places):
                left_out = {"full": seen, "full_keep": jnp.zeros_like(seen[:, :1])}
                noted = {}
                for name, items in left_out.items():
                    score, item = first_places(hidden, table, items, catalogue, k=num_places)
                    is_place = (target > 0)[:, None] & (score > -jnp.inf)
                    noted[name] = note_places(best_places[name], item, is_place)
                return noted

            places = jax.lax.cond(with_coverage, note, lambda same: same, best_places)
            return ranks._asdict(), places

        self._rank = jax.jit(rank, donate_argnums=2, out_shardings=sharding.replicated(mesh))
        self._programs = {}

    def prepare(self, params: Params, shapes: Iterable[BatchShape], num_negatives: int) -> int:
        """Compiles the programs for all batches ahead of them.

        Args:
          params: Of the model, or ShapeDtypeStructs with the shardings that they will have.
          shapes: From `evaluation_shapes`.
          num_negatives: Columns of the negatives.

        Returns:
          Bytes that the largest program holds at once on one device, the parameters included.
        """
        place = sharding.batch_sharding(self._mesh)
        needed = [0]
        for rows, length, seen in shapes:
            widths = {"item_ids": [length], "positions": [length], "target": []}
            widths |= {"seen": [seen], "negatives": [num_negatives]}
            inputs = {
                name: jax.ShapeDtypeStruct((rows, *width), jnp.int32, sharding=place)
                for name, width in widths.items()
            }
            program = self._program(params, inputs, *self._coverage_inputs(False))
            needed.append(memory.program_bytes(program))
        return max(needed)

    def _program(self, params, inputs, places, with_coverage):
        key = tuple(array.shape for _, array in sorted(inputs.items()))
        if key not in self._programs:
            self._programs[key] = self._rank.lower(params, inputs, places, with_coverage).compile()
        return self._programs[key]

    def _coverage_inputs(self, with_coverage):
        size = self._num_items + 1
        places = {name: jnp.full(size, NOWHERE, jnp.int32) for name in ("full", "full_keep")}
        everywhere = sharding.replicated(self._mesh)
        return sharding.put_whole((places, np.bool_(with_coverage)), everywhere)

    def __call__(
        self,
        params: Params,
        batches: Iterable[Batch],
        negatives: Int[np.ndarray, "n N"],
        *,
        with_coverage: bool = False,
    ) -> Ranks:
        """Ranks every user's target.

        Args:
          params: Of the model, laid out over the mesh.
          batches: From `evaluation_batches`; between them, every row of `negatives` once.
          negatives: From `metrics.draw_negatives`, one row for each user.
          with_coverage: Whether to note the best places of items, which takes longer.

        Returns:
          Ranks in the order of `negatives`.

        Raises:
          ValueError: If a user is missing.
        """
        places, wanted = self._coverage_inputs(with_coverage)
        found = []
        for batch in batches:
            row = batch["row"]
            inputs = {name: array for name, array in batch.items() if name != "row"}
            inputs["negatives"] = negatives[row]
            inputs["seen"] = _different(inputs["seen"])
            inputs = sharding.put_whole(inputs, sharding.batch_sharding(self._mesh))
            arguments = params, inputs, places, wanted
            rank, places = self._program(*arguments)(*arguments)
            found.append((row, rank))  # the device is still at work on it

        num_users, num_negatives = negatives.shape
        ranks = {name: np.full(num_users, np.nan) for name in ("full", "full_keep", "uniform")}
        for row, rank in found:
            for name, values in rank.items():
                ranks[name][row[row >= 0]] = np.asarray(values)[row >= 0]
        if missing := int(np.isnan(ranks["full"]).sum()):
            raise ValueError(f"the batches leave out {missing} of {num_users} users")
        return Ranks(
            **ranks,
            num_items=self._num_items,
            num_negatives=num_negatives,
            best_places=jax.device_get(places) if with_coverage else {},
        )


def _different(items: Int[np.ndarray, "b s"]) -> Int[np.ndarray, "b s"]:
    """Keeps each item of a row once; 0 stands for the others."""
    items = np.sort(items, axis=1)
    items[:, 1:][items[:, 1:] == items[:, :-1]] = 0
    return items


def summarize(ranks: Ranks, ks: Sequence[int] = KS) -> dict[str, float]:
    """Averages the metrics of all protocols.

    Args:
      ranks: From `Evaluator`.
      ks: Where rankings are cut off.

    Returns:
      {"full/recall@10": .., "full_keep/..": .., "uni100/..": .., "uni100_corrected/..": ..,
      "full/coverage@10": .., "full_keep/coverage@10": .., "repeated_targets": share of users whose
      target is not new to them}. The name of uni100 has the number of negatives; its corrected
      form estimates `full_keep`. Coverage is there where the best places are.
    """
    uniform = f"uni{ranks.num_negatives}"
    corrected = metrics.corrected_metrics_from_ranks(
        ranks.uniform, ks, num_items=ranks.num_items, num_negatives=ranks.num_negatives
    )
    covered = {name: coverage(best, ks) for name, best in ranks.best_places.items()}
    by_protocol = {
        "full": metrics.metrics_from_ranks(ranks.full, ks) | covered.get("full", {}),
        "full_keep": metrics.metrics_from_ranks(ranks.full_keep, ks) | covered.get("full_keep", {}),
        uniform: metrics.metrics_from_ranks(ranks.uniform, ks),
        f"{uniform}_corrected": corrected,
    }
    found = {
        f"{protocol}/{metric}": value
        for protocol, values in by_protocol.items()
        for metric, value in values.items()
    }
    repeated = np.isinf(ranks.full) & np.isfinite(ranks.full_keep)
    return {**found, "repeated_targets": float(np.mean(repeated))}
