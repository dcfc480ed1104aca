"""Lazy Adam: a step reads, and updates, only those rows of the item table that it needs.

The rows that a step touches, and their moments, are taken out of the state as a small table. The
whole step, with gradients, clipping and optimizer, then runs on that as if it were all, and what
comes out is put back. So nothing as large as the item table is made. The other rows stay as they
are: neither they nor their moments decay. The bias correction of Adam
(https://arxiv.org/abs/1412.6980) goes by the number of all updates. TensorFlow Addons' LazyAdam and
PyTorch's SparseAdam do the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from blossom_jax import sharding
from blossom_jax.losses.objective import Negatives


class Examples(NamedTuple):
    """All that a step needs besides its state; items are rows of the item table.

    Attributes:
      item_ids: int32[B, L].
      positions: int32[B, L], -1 at padding.
      targets: int32[B * L], 0 where there is none.
      negatives: From `Loss.draw`.
    """

    item_ids: Int[Array, "B L"]
    positions: Int[Array, "B L"]
    targets: Int[Array, "T"]
    negatives: Negatives | None


Update = Callable[[dict, Examples, jax.Array], tuple[dict, dict]]


def on_touched_rows(update: Update) -> Update:
    """Makes an update of the whole state one of the rows that its examples touch.

    Args:
      update: `(state, examples, key) -> (state, metrics)`; its loss compares with the negatives of
        the examples alone, and its optimizer treats each row by itself and remembers no gradient.

    Returns:
      The same, which raises ValueError if the loss draws no negatives.
    """

    def update_touched(state, examples, key):
        if examples.negatives is None:
            raise ValueError("lazy rows need a loss by samples: this one compares with all items")
        rows, examples = _renumber(examples, _num_rows(state))
        touched, metrics = update(_take(state, rows), examples, key)
        return _put(state, rows, touched), metrics

    return update_touched


def _renumber(examples: Examples, num_rows: int) -> tuple[Int[Array, "rows"], Examples]:
    """Returns the rows that are touched, ascending, and examples that count along these.

    The first is 0, so that 0 still means what it did. Rows past the end fill up what is too many.
    """
    items = (jnp.int32(0), examples.item_ids, examples.targets, examples.negatives.items)
    flat, unravel = ravel_pytree(items)
    size = min(flat.size, num_rows)
    rows, places = jnp.unique(flat, return_inverse=True, size=size, fill_value=num_rows)
    rows = jnp.where(rows < num_rows, rows, num_rows + jnp.arange(size))  # none occurs twice
    _, item_ids, targets, negatives = unravel(places)
    return rows, examples._replace(
        item_ids=item_ids, targets=targets, negatives=examples.negatives._replace(items=negatives)
    )


def _num_rows(state: Any) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return next(len(leaf) for path, leaf in leaves if sharding.is_item_table(path))


def _take(state: Any, rows: Int[Array, "rows"]) -> Any:
    """Returns the state of the rows alone; rows past the end are 0, and no update moves them."""

    def take(path, leaf):
        if not sharding.is_item_table(path):
            return leaf
        return leaf.at[rows].get(
            mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=True
        )

    return jax.tree_util.tree_map_with_path(take, state)


def _put(state: Any, rows: Int[Array, "rows"], touched: Any) -> Any:
    """Returns the state with the rows as they have become; rows past the end are dropped."""

    def put(path, leaf, new):
        if not sharding.is_item_table(path):
            return new
        return leaf.at[rows].set(new, mode="drop", unique_indices=True, indices_are_sorted=True)

    return jax.tree_util.tree_map_with_path(put, state, touched)
