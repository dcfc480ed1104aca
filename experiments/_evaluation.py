"""Builds what a config says about evaluation, for every command that measures a model."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import tqdm

from blossom_jax import buckets, data, evaluate, memory, negatives, popularity, sharding
from blossom_jax.config import ModelConfig
from blossom_jax.data.evaluation_batches import evaluation_batches, evaluation_shapes
from blossom_jax.data.history_batches import fewest_users
from blossom_jax.errors import UserError
from blossom_jax.protocol_metrics import Ranks, summarize

_SHOWN_AFTER_SECONDS = 5.0


def make_evaluator(
    config: ml_collections.ConfigDict,
    encode: evaluate.Encode,
    num_items: int,
    mesh: jax.sharding.Mesh,
    *,
    with_loss: bool = True,
) -> evaluate.Evaluator:
    """Returns what ranks by `encode`, in validation and test alike: compiled once for both."""
    _check(config.eval)
    return evaluate.Evaluator(
        encode,
        num_items=num_items,
        mesh=mesh,
        ks=config.eval.ks,
        chunk=config.eval.chunk_items,
        with_loss=with_loss,
    )


def _check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError at a value of `config.eval` that no evaluation can work with."""
    ks = config.ks
    if not ks or not all(isinstance(k, int) and k >= 1 for k in ks):
        raise UserError(f"eval.ks must be whole numbers from 1 up, got {ks}")
    if config.num_negatives < 1:
        raise UserError(f"eval.num_negatives must be at least 1: {config.num_negatives}")
    if config.chunk_items < 1:
        raise UserError(f"eval.chunk_items must be at least 1: {config.chunk_items}")
    if config.negatives_seed < 0:
        raise UserError(f"eval.negatives_seed must not be negative: {config.negatives_seed}")


class Evaluation:
    """Measures a model, or popularity, on the targets of one part of a split."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        interactions: data.Interactions,
        split: data.Split,
        part: str,
        mesh: jax.sharding.Mesh,
        *,
        with_coverage: bool = False,
    ):
        """Draws the negatives.

        Args:
          config: Its sections `eval` and `model` are read.
          interactions: The log.
          split: Of the log.
          part: "valid" or "test".
          mesh: Devices over which users are split.
          with_coverage: Whether coverage is measured too, which takes longer.

        Raises:
          UserError: A value of `config.eval` out of its range.
        """
        _check(config.eval)
        self._config, self._interactions, self._split = config, interactions, split
        self._mesh, self._with_coverage = mesh, with_coverage
        self._targets = getattr(split, part)
        self._users = interactions, self._targets
        model = ModelConfig(**config.model)
        self._sizes = {
            "max_length": model.history_length,
            "batch_users": config.eval.batch_users,
            "multiple_of": mesh.size,
            "gap": model.appended,
        }
        self._negatives = negatives.draw(
            *self._users,
            popularity.item_counts(interactions, split),
            num=config.eval.num_negatives,
            seed=config.eval.negatives_seed,
        )
        # As for training: what is needed at least, since even planning fails at absurd sizes.
        users = fewest_users(config.eval.batch_users, model.history_length, mesh.size)
        self._check_fits(4 * users * self._num_scored // mesh.size)
        self._shapes = evaluation_shapes(*self._users, **self._sizes)

    def prepare(self, evaluator: evaluate.Evaluator, params: Any, *, other_bytes: int = 0) -> None:
        """Compiles what ranks by the model, before any of it is allocated.

        Args:
          evaluator: From `make_evaluator`.
          params: Of the model, as ShapeDtypeStructs with shardings.
          other_bytes: What each device holds besides, during evaluation.

        Raises:
          UserError: Sizes that do not fit, with the bytes asked for.
        """
        # Likewise, since the compiler may fail at absurd sizes.
        at_least = memory.shard_bytes(params) + max(
            4 * (users * (self._num_scored + seen) + rows * length) // self._mesh.size
            for users, rows, length, seen in self._shapes
        )
        self._check_fits(other_bytes + at_least)
        negatives_shape = self._negatives.items.shape[1:]
        needed = evaluator.prepare(
            params, self._shapes, negatives_shape, with_coverage=self._with_coverage
        )
        self._check_fits(other_bytes + needed)

    @property
    def _num_scored(self) -> int:
        """Items that a device scores at once."""
        rows = self._interactions.num_items // self._mesh.shape[sharding.MODEL]
        return min(rows, self._config.eval.chunk_items)

    def _check_fits(self, bytes_per_device: int) -> None:
        lower = "eval.batch_users or the sizes in config.model"
        memory.check_fits("evaluation", bytes_per_device, [*self._mesh.devices.flat], lower=lower)

    @functools.cached_property
    def popularity(self) -> dict[str, float]:
        """The metrics of ranking by how often an item was trained on."""
        ranks = popularity.popularity_ranks(
            self._interactions,
            self._split,
            self._targets,
            self._negatives,
            coverage_ks=self._config.eval.ks if self._with_coverage else (),
        )
        return summarize(ranks, self._config.eval.ks)

    def rank(
        self,
        evaluator: evaluate.Evaluator,
        params: Any,
        *,
        extend: Callable[[data.Targets, dict], dict] = lambda targets, batch: batch,
    ) -> Ranks:
        """Ranks all targets by a model with some parameters.

        Args:
          evaluator: Of the model.
          params: Likewise.
          extend: Adds to a batch of these targets what its scores are made of besides.
        """
        batches = (extend(self._targets, batch) for batch in self.batches())
        return evaluator(params, batches, self._negatives, with_coverage=self._with_coverage)

    def batches(self) -> Iterator[dict]:
        """Yields all batches; on a terminal, and if that takes long, a bar shows how far it is."""
        users = len(self._targets.users)
        options = {"unit": " users", "leave": False, "delay": _SHOWN_AFTER_SECONDS}
        with tqdm.tqdm(total=users, desc="evaluating", disable=None, **options) as bar:
            for batch in evaluation_batches(*self._users, **self._sizes):
                yield batch
                bar.update(int((batch["history"] >= 0).sum()))

    def summarize(self, ranks: Ranks) -> dict[str, float]:
        """Returns the metrics of all protocols by name."""
        return summarize(ranks, self._config.eval.ks)

    def by_length(self, ranks: Ranks) -> list[buckets.Bucket]:
        """Returns the metrics by bucket of history length."""
        model = self._config.model
        return buckets.by_length(
            ranks,
            buckets.history_lengths(self._interactions, self._targets),
            dense_length=(model.num_selected_blocks + 1) * model.selection_block_size,
            ks=self._config.eval.ks,
        )

    def by_popularity(self, ranks: Ranks) -> list[buckets.Bucket]:
        """Returns the metrics by bucket of how often the target was trained on."""
        counts = popularity.item_counts(self._interactions, self._split)
        target = self._interactions.items[self._targets.target]
        return buckets.by_popularity(ranks, counts[target], ks=self._config.eval.ks)
