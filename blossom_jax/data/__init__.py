"""Interaction logs: where they come from, how they are read, prepared and split."""

from blossom_jax.data.interactions import Interactions
from blossom_jax.data.load import load_dataset
from blossom_jax.data.prepare import from_table
from blossom_jax.data.split import Split, Targets, global_time, leave_one_out

__all__ = [
    "Interactions",
    "Split",
    "Targets",
    "from_table",
    "global_time",
    "leave_one_out",
    "load_dataset",
]
