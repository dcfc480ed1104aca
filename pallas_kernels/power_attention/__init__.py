"""The short-term path: a window and power-of-two distances."""

from pallas_kernels.power_attention.api import power_attention

__all__ = ["power_attention"]
