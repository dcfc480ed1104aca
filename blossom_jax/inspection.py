"""What a model decides while it reads a history: gates, and the blocks that are selected."""

import dataclasses
from typing import Any

from flax import nnx
from jaxtyping import Array, Int

from blossom_jax.model import BlossomRec

Decisions = dict[str, Any]  # of one layer, see `BlossomAttention.decide`


def decisions(
    model: BlossomRec, item_ids: Int[Array, "B L"], positions: Int[Array, "B L"]
) -> list[Decisions]:
    """Runs a model, and returns what the attention of each layer decides for each token.

    Args:
      model: Left as it is.
      item_ids: As in a call of the model.
      positions: Likewise.

    Returns:
      {"gates": [B, L, H, 2], "slots": [B, L, G, N]} for each layer; {} for attention that decides
      nothing, such as dense attention, and inside HSTU's block, which changes queries and keys.
    """
    if model.config.block == "hstu":
        return [{} for _ in model.layers]
    found: list[Decisions] = []
    model = nnx.merge(*nnx.split(model))  # another module, of the same arrays
    # A block that is computed again for its gradients is traced, and would decide about tracers.
    model.config = dataclasses.replace(model.config, remat="none")
    for layer in model.layers:
        layer.attention = _Recorder(layer.attention, found)  # type: ignore[assignment]
    model(item_ids, positions)
    return found


class _Recorder:
    """Stands in for an attention module, and keeps what it decides."""

    def __init__(self, attention, found: list[Decisions]):
        self._attention, self._found = attention, found

    def __call__(self, x, positions, **options):
        decide = getattr(self._attention, "decide", None)
        self._found.append(decide(x, positions) if decide else {})
        return self._attention(x, positions, **options)
