"""BERT4Rec's objective (arXiv 1904.06690): predict hidden events from both their sides.

Item 0 stands for a hidden event, as no item is 0; padding has a position of -1 besides, so its row
of the item table is free.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from pallas_kernels.positions import sequence_end, sequence_start

MASK = 0
LAST_ONLY = 0.1  # share of the sequences of which the last event alone is hidden, as when asked


def hide_events(
    item_ids: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    key: PRNGKeyArray,
    *,
    probability: float,
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """Hides events of packed rows at random.

    Args:
      item_ids: Items.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      key: Decides which events are hidden.
      probability: Of each event of a sequence, unless its last event alone is hidden.

    Returns:
      The items with those hidden, and the targets: what is hidden, 0 elsewhere.
    """
    event_key, sequence_key = jax.random.split(key)
    drawn = jax.random.uniform(sequence_key, positions.shape)
    last_only = jnp.take_along_axis(drawn, sequence_start(positions), axis=1) < LAST_ONLY
    is_last = sequence_end(positions) == jnp.arange(positions.shape[1]) + 1
    at_random = jax.random.uniform(event_key, positions.shape) < probability
    hidden = jnp.where(last_only, is_last, at_random) & (positions >= 0)
    return jnp.where(hidden, MASK, item_ids), jnp.where(hidden, item_ids, 0)


def append_mask(
    item_ids: Int[Array, "B L"], positions: Int[Array, "B L"], last: Int[Array, "U"]
) -> tuple[Int[Array, "B L_plus_1"], Int[Array, "B L_plus_1"], Int[Array, "U"]]:
    """Puts a hidden event behind each history, so that it is asked what comes next.

    Args:
      item_ids: Packed rows, at least one token of padding between two histories.
      positions: int32, position of each token inside its own history, -1 at padding.
      last: Place of each history's last token, counted along the rows.

    Returns:
      Rows that are one token longer, and the places of the hidden events.
    """
    last = last + last // positions.shape[1] + 1
    item_ids = jnp.pad(item_ids, ((0, 0), (0, 1)))
    before = jnp.pad(positions, ((0, 0), (1, 0)), constant_values=-1)
    positions = jnp.pad(positions, ((0, 0), (0, 1)), constant_values=-1)
    is_mask = (positions < 0) & (before >= 0)
    return jnp.where(is_mask, MASK, item_ids), jnp.where(is_mask, before + 1, positions), last
