"""Continued training: known items keep rows and moments wherever they stand, new ones are drawn."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import flags, make_log, make_run

from blossom_jax.checkpoint import Checkpoints
from blossom_jax.continued_training import continued_state, match_items
from blossom_jax.errors import UserError
from experiments import _continue, _plan, _cli, train
