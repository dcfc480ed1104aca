"""The long-term path's choice: score every earlier block, keep the top N."""

from pallas_kernels.block_selection.api import block_selection

__all__ = ["block_selection"]
