"""Both paths and the gate."""

from pallas_kernels.blossom_attention.api import blossom_attention

__all__ = ["blossom_attention"]
