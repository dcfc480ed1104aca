"""A model of few items with random parameters, as if it had been trained."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from blossom_jax import sharding
from blossom_jax.catalogue import Catalogue
from blossom_jax.model import ModelConfig, model_maker
from blossom_jax.trained_model import TrainedModel

NUM_ITEMS = 40
SIZES = {
    "hidden_size": 16,
    "inner_size": 16,
    "num_layers": 1,
    "compress_block_size": 4,
    "compress_stride": 2,
    "selection_block_size": 2,
    "num_selected_blocks": 2,
    "max_length": 20,
}


def tiny_model(**changes) -> TrainedModel:
    sizes = SIZES | changes
    graphdef, params = nnx.split(model_maker(ModelConfig(**sizes), NUM_ITEMS, 0)(), nnx.Param)
    # Initial embeddings are so small that the scores of all items would be nearly the same.
    table = params["item_embedding"]["embedding"]
    rows = np.random.default_rng(0).normal(size=table.shape).astype(np.float32)
    table.set_value(jnp.asarray(rows))
    catalogue = Catalogue("tiny", raw_ids(), np.arange(NUM_ITEMS) % 7)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config = {"seed": 0, "model": sizes}
    return TrainedModel(pathlib.Path("nowhere"), config, catalogue, graphdef, params, 7, "", mesh)


def raw_ids() -> list[str]:
    """Returns ids in an order of their own: that of item k is the text of 3 k."""
    return [str(3 * number) for number in range(1, NUM_ITEMS + 1)]
