"""What a model decides while it reads a history: gates, and the blocks that are selected."""

from typing import Any

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
    attentions = [layer.attention for layer in model.layers]
    try:
        for layer, attention in zip(model.layers, attentions, strict=True):
            layer.attention = _Recorder(attention, found)  # type: ignore[assignment]
        model(item_ids, positions)
    finally:
        for layer, attention in zip(model.layers, attentions, strict=True):
            layer.attention = attention
    return found


class _Recorder:
    """Stands in for an attention module, and keeps what it decides."""

    def __init__(self, attention, found: list[Decisions]):
        self._attention, self._found = attention, found

    def __call__(self, x, positions, **options):
        decide = getattr(self._attention, "decide", None)
        self._found.append(decide(x, positions) if decide else {})
        return self._attention(x, positions, **options)
