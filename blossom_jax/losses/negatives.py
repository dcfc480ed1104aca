"""Items that a token did not lead to, drawn on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray


def cumulative_counts(counts: Int[np.ndarray, "rows"]) -> Int[np.ndarray, "rows"]:
    """Makes of the events of each item what `draw` needs to draw by popularity.

    Every item is counted once more than it occurs, so that none is out of reach.

    Args:
      counts: Events of item k at k; what stands at 0, which is padding, does not count.

    Returns:
      int32: of item k, the sum up to and including item k.

    Raises:
      ValueError: The sum is more than an int32 can hold.
    """
    each = np.where(np.arange(len(counts)) > 0, counts + 1, 0)
    total = int(each.sum(dtype=np.int64))
    if total >= 2**31:
        raise ValueError(f"events and items together must stay below 2**31, got {total=}")
    return np.cumsum(each, dtype=np.int32)


def draw(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    num_items: int,
    cumulative: Int[Array, "rows"] | None = None,
) -> Int[Array, "..."]:
    """Draws items with replacement.

    Args:
      key: The same key gives the same items, on any mesh.
      shape: Of the result.
      num_items: V, size of the catalogue.
      cumulative: From `cumulative_counts`, to draw an item as often as it occurs. None = all items
        alike.

    Returns:
      int32 items in 1..num_items.
    """
    if cumulative is None:
        return jax.random.randint(key, shape, 1, num_items + 1)
    # Whole numbers: in f32, steps of a sum over a large catalogue would round to none at all.
    event = jax.random.randint(key, shape, 0, cumulative[num_items])
    return jnp.searchsorted(cumulative, event, side="right").astype(jnp.int32)


def log_probability(
    items: Int[Array, "..."], num_items: int, cumulative: Int[Array, "rows"] | None = None
) -> Float[Array, "..."]:
    """Returns the logarithm of the probability with which one draw gives each item.

    Args:
      items: From `draw`.
      num_items: As in `draw`.
      cumulative: As in `draw`.
    """
    if cumulative is None:
        return jnp.full(items.shape, -jnp.log(jnp.float32(num_items)))
    count = cumulative[items] - cumulative[items - 1]
    return jnp.log(count.astype(jnp.float32)) - jnp.log(cumulative[num_items].astype(jnp.float32))
