"""Starts a run from the state of another, whose catalogue may be smaller or in another order."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int

from blossom_jax import sharding
from blossom_jax.catalogue import Catalogue
from blossom_jax.errors import UserError
from blossom_jax.train_step import State


def match_items(old: Catalogue, item_ids: Sequence[str]) -> Int[np.ndarray, "items"]:
    """Finds the items of a new catalogue in an old one, by raw id.

    Args:
      old: The catalogue of the run to start from.
      item_ids: V raw ids of the new one, in its order.

    Returns:
      int64[V + 1]: at k the old number of the new item k, -1 where it is new; 0 at 0, the padding.
    """
    return np.array([0, *(old.numbers.get(str(raw), -1) for raw in item_ids)])


def continued_state(initial: State, old: State, old_number: Int[np.ndarray, "items"]) -> State:
    """Carries the parameters and moments of an old run over into the initial state of a new one.

    Rows of the item table, and of its moments, are taken from where the items stood in the old
    run; new items keep what the initial state has. The step, the place in the learning-rate
    schedule and gradients that were accumulated are the initial ones: the new run's schedule begins
    anew. Adam's own count of updates, which corrects its means, goes with the moments.

    Args:
      initial: Of the new run; donated.
      old: Of the old run, likewise over the same devices.
      old_number: From `match_items`.

    Raises:
      UserError: A parameter has another shape in the old run, or is in one of them alone.
    """
    _check_same_model(initial["params"], old["params"])
    source = np.full(_table(initial["params"]).shape[0], -1)
    source[: len(old_number)] = old_number

    def carry(path, new, old):
        if not sharding.is_item_table(path):
            return old
        return jnp.where((source >= 0)[:, None], old[np.maximum(source, 0)], new)

    def carry_all(initial, old_params, old_adam):
        carried = jax.tree_util.tree_map_with_path(
            carry, {"params": initial["params"]}, {"params": old_params}
        )
        opt_state = jax.tree.map(
            lambda part: (
                jax.tree_util.tree_map_with_path(carry, part, old_adam) if _is_adam(part) else part
            ),
            initial["opt_state"],
            is_leaf=_is_adam,
        )
        return {**initial, **carried, "opt_state": opt_state}

    keep = jax.tree.map(lambda leaf: leaf.sharding, initial)
    (old_adam,) = filter(_is_adam, jax.tree.leaves(old["opt_state"], is_leaf=_is_adam))
    carry_jitted = jax.jit(carry_all, donate_argnums=0, out_shardings=keep)
    return carry_jitted(initial, old["params"], old_adam)


def _is_adam(part) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def _table(params) -> jax.Array:
    (table,) = (leaf for path, leaf in _leaves(params) if sharding.is_item_table(path))
    return table


def _leaves(params):
    return jax.tree_util.tree_flatten_with_path(params)[0]


def _check_same_model(new, old) -> None:
    """Compares the shapes of all parameters; of the item table, the width alone."""

    def shapes(params):
        return {
            jax.tree_util.keystr(path, simple=True, separator="."): (
                leaf.shape[1:] if sharding.is_item_table(path) else leaf.shape
            )
            for path, leaf in _leaves(params)
        }

    here, there = shapes(new), shapes(old)
    for name in here | there:
        if here.get(name) != there.get(name):
            raise UserError(
                f"the model of train.init_from is another one: its {name.removesuffix('.value')} "
                f"is {there.get(name)}, that of this config {here.get(name)}; use its config.model"
            )
