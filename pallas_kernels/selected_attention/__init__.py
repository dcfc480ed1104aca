"""The long-term path's attention: the query's own block and the selected ones."""

from pallas_kernels.selected_attention.api import selected_attention

__all__ = ["selected_attention"]
