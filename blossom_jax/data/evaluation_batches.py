"""Evaluation batches: every user once, in few shapes, with the item to rank."""

from collections.abc import Iterator

import numpy as np

from blossom_jax.data.history_batches import (
    BatchShape,
    Histories,
    history_batches,
    history_shapes,
)
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.split import Targets
from blossom_jax.data.train_batches import Batch
from blossom_jax.errors import UserError


def evaluation_shapes(
    interactions: Interactions,
    targets: Targets,
    *,
    max_length: int,
    batch_users: int,
    multiple_of: int = 1,
    gap: int = 0,
) -> list[BatchShape]:
    """Returns the different shapes of what `evaluation_batches` yields, without making any of it.

    Args:
      interactions: As there, and so on.
      targets: Likewise.
      max_length: Likewise.
      batch_users: Likewise.
      multiple_of: Likewise.
      gap: Likewise.

    Raises:
      UserError: `batch_users` does not divide by `multiple_of`.
    """
    _check(batch_users, multiple_of)
    return history_shapes(
        _histories(interactions, targets),
        max_length=max_length,
        batch_users=batch_users,
        multiple_of=multiple_of,
        gap=gap,
    )


def evaluation_batches(
    interactions: Interactions,
    targets: Targets,
    *,
    max_length: int,
    batch_users: int,
    multiple_of: int = 1,
    gap: int = 0,
) -> Iterator[Batch]:
    """Batches the users to evaluate, shortest histories first, in few shapes.

    Args:
      interactions: A prepared log.
      targets: The users and their targets.
      max_length: Events that the model sees, at most.
      batch_users: Users in a batch of short histories.
      multiple_of: What the users of every batch divide by: devices that share them.
      gap: Tokens left empty between two histories of a row: `ModelConfig.appended`.

    Yields:
      What `history_batches` makes of the events before the targets, and
        target: int32[b], the item to rank; 0 for nobody.

    Raises:
      UserError: `batch_users` does not divide by `multiple_of`.
    """
    _check(batch_users, multiple_of)
    batches = history_batches(
        _histories(interactions, targets),
        max_length=max_length,
        batch_users=batch_users,
        multiple_of=multiple_of,
        gap=gap,
    )
    for batch in batches:
        item = interactions.items[targets.target[batch["history"]]]
        yield {**batch, "target": np.where(batch["history"] >= 0, item, 0).astype(np.int32)}


def _histories(interactions: Interactions, targets: Targets) -> Histories:
    return Histories(interactions.items, interactions.offsets[targets.users], targets.target)


def _check(batch_users: int, multiple_of: int) -> None:
    if batch_users < 1 or batch_users % multiple_of:
        raise UserError(
            "eval.batch_users must be a positive multiple of the devices that share it: "
            f"eval.batch_users={batch_users}, devices={multiple_of}"
        )
