"""The sparse attention blocks of BlossomRec, each with several implementations.

Letters in shapes: B batch row, L row length, H query heads, G key/value heads, D head size,
S selection block, N selected blocks, W window, `slots` = ceil(L / S). Beside attention stands
`item_softmax`, which the loss over a catalogue takes on a GPU: T tokens, M hidden size, V rows of
the table.
"""

from pallas_kernels.block_selection.api import block_selection
from pallas_kernels.blossom_attention.api import blossom_attention
from pallas_kernels.positions import validate_positions
from pallas_kernels.power_attention.api import power_attention
from pallas_kernels.selected_attention.api import selected_attention

__all__ = [
    "block_selection",
    "blossom_attention",
    "power_attention",
    "selected_attention",
    "validate_positions",
]
