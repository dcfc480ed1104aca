"""Blossom attention as its definition: both paths in full, added by the gate."""

import functools

from pallas_kernels.block_selection.reference import block_selection
from pallas_kernels.blossom_attention.paths import Ops, both_paths
from pallas_kernels.power_attention.reference import power_attention
from pallas_kernels.selected_attention.reference import selected_attention

_OPS = Ops(block_selection, selected_attention, power_attention)

blossom_attention = functools.partial(both_paths, _OPS)
