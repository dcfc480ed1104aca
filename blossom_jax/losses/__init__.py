"""What training minimises: over the whole catalogue, or over sampled negatives."""

from blossom_jax.losses.cross_entropy import full_cross_entropy
from blossom_jax.losses.objective import Loss, LossConfig, make_loss
from blossom_jax.losses.sampled import sampled_loss

__all__ = ["Loss", "LossConfig", "full_cross_entropy", "make_loss", "sampled_loss"]
