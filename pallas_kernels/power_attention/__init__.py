"""The short-term path: a window and power-of-two distances."""
