"""Ways to choose blocks that learn nothing: what the compressor's choice is to be measured against.

Each gives what `pallas_kernels.block_selection` gives, so that a query attends as many keys
whoever chose them, and each is causal. How much choosing is worth at all is asked by attention to
a window and a few averages instead: `summary_attention.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from blossom_jax.config import ModelConfig
from pallas_kernels.block_selection.reference import candidate_mask, candidates, select_top
from pallas_kernels.masked_softmax import at_least_f32, einsum, masked_softmax
from pallas_kernels.positions import blocks, own_slot, sequence_start

Selection = tuple[Int[Array, "B L G N"], Float[Array, "B L G N"]]


def select_by_rule(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    config: ModelConfig,
) -> Selection:
    """Chooses each query's blocks as `config.selector` says: "recent", "random" or "oracle".

    Args:
      q: Queries, rotated.
      k: Keys, rotated.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      config: Sizes and switches.

    Returns:
      Slots and probabilities as `block_selection` returns them.
    """
    sizes = {
        "block_size": config.selection_block_size,
        "num_selected": config.num_selected_blocks,
    }
    if config.selector == "oracle":
        return most_attended_blocks(q, k, positions, **sizes)
    sizes["num_kv_heads"] = config.num_kv_heads
    if config.selector == "recent":
        return recent_blocks(positions, **sizes)
    return random_blocks(
        positions, max_length=config.max_length, seed=config.selector_seed, **sizes
    )


def recent_blocks(
    positions: Int[Array, "B L"], *, block_size: int, num_selected: int, num_kv_heads: int
) -> Selection:
    """Chooses the last blocks before a query's own: with that, a plain window.

    Args:
      positions: As in `select_by_rule`.
      block_size: S, tokens in a block.
      num_selected: N, blocks for each query.
      num_kv_heads: G.

    Returns:
      Slots and probabilities as `block_selection` returns them, the latter all alike.
    """
    row = blocks(positions, block_size=block_size, causal=True)
    back = jnp.arange(1, num_selected + 1, dtype=jnp.int32)
    relative = row.num_candidates[:, :, None, None] - back
    return _selection(jnp.repeat(relative, num_kv_heads, axis=2), row.first_slot)


def random_blocks(
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    num_selected: int,
    num_kv_heads: int,
    max_length: int,
    seed: int,
) -> Selection:
    """Chooses blocks by lot, once for each position and key/value head, for all histories alike.

    Args:
      positions: As in `recent_blocks`, and so on.
      block_size: Likewise.
      num_selected: Likewise.
      num_kv_heads: Likewise.
      max_length: Positions lie below it; lots are drawn for these, whatever the row's length.
      seed: Of the lots.

    Returns:
      As in `recent_blocks`.
    """
    row = blocks(positions, block_size=block_size, causal=True)
    lots = jnp.asarray(_lots(max_length, block_size, num_selected, num_kv_heads, seed))
    drawn = lots[jnp.maximum(positions, 0)]  # [B, L, G, N]
    relative = jnp.where(drawn < row.num_candidates[:, :, None, None], drawn, -1)
    return _selection(relative, row.first_slot)


def most_attended_blocks(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    num_selected: int,
) -> Selection:
    """Chooses the blocks to which dense attention would give most weight, for an upper bound.

    The weight is that of a softmax over all earlier tokens, averaged over the heads of a group.
    Time is quadratic in the length, and memory for one row of the batch at a time.

    Args:
      q: Queries, rotated.
      k: Keys, rotated.
      positions: As in `recent_blocks`, and so on.
      block_size: Likewise.
      num_selected: Likewise.

    Returns:
      Slots, and the weight of each chosen block, which carries no gradient.
    """
    q, k = (jax.lax.stop_gradient(at_least_f32(x)) for x in (q, k))
    slots = -(-positions.shape[1] // block_size)

    def of_row(row):
        q, k, positions = row
        index = jnp.arange(len(positions), dtype=jnp.int32)
        allowed = (index >= sequence_start(positions)[:, None]) & (index <= index[:, None])
        allowed &= (positions >= 0)[:, None]
        weight = _dense_weight(q, k, allowed)  # [G, L, L]
        in_block = own_slot(positions, block_size=block_size)[:, None] == jnp.arange(slots)
        mass = einsum("gij,jw->igw", weight, in_block.astype(weight.dtype))
        candidate = candidates(positions, block_size=block_size, causal=True, mask_own_block=False)
        mask = candidate_mask(candidate, jnp.arange(slots, dtype=jnp.int32))
        return select_top(jnp.where(mask[:, None], mass, 0), num_selected)

    return jax.lax.map(of_row, (q, k, positions))


def _dense_weight(q, k, allowed):
    """Returns the softmax over allowed keys, averaged over a group's heads: [G, L, L]."""
    length, num_heads, d = q.shape
    num_kv_heads = k.shape[1]
    queries = q.reshape(length, num_kv_heads, num_heads // num_kv_heads, d)
    logits = d**-0.5 * einsum("igrd,jgd->grij", queries, k)
    return masked_softmax(logits, allowed).mean(1)


def _selection(relative: Int[Array, "B L G N"], first_slot: Int[Array, "B L"]) -> Selection:
    """Turns blocks counted from their sequence's first, negative for none, into a selection."""
    chosen = relative >= 0
    slots = jnp.where(chosen, relative + first_slot[:, :, None, None], -1)
    return slots, chosen / jnp.maximum(chosen.sum(-1, keepdims=True), 1).astype(jnp.float32)


def _lots(max_length, block_size, num_selected, num_kv_heads, seed) -> np.ndarray:
    """Draws different earlier blocks: int32[max_length, G, N], the number of all blocks for none.

    The lots depend on the arguments alone, so a packed row draws what its sequences draw alone.
    """
    num_blocks = -(-max_length // block_size)
    earlier = np.arange(max_length) // block_size
    lots = np.full((max_length, num_kv_heads, num_selected), num_blocks, np.int32)
    rng = np.random.default_rng(seed)
    for head in range(num_kv_heads):
        order = rng.random((max_length, num_blocks))
        order[np.arange(num_blocks) >= earlier[:, None]] = 2.0  # behind all that may be drawn
        drawn = np.argsort(order, axis=1, kind="stable")[:, :num_selected]
        lots[:, head, : drawn.shape[1]] = np.where(drawn < earlier[:, None], drawn, num_blocks)
    return lots
