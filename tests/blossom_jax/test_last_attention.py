"""What comes next, asked of packed rows: as the whole model says of each history alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax.baselines.masking import MASK
from blossom_jax.data.history_batches import Histories, history_batches
from blossom_jax.model import BlossomRec, ModelConfig

NUM_ITEMS = 50
LENGTHS = (1, 2, 30, 5, 9, 44, 1, 24, 38, 12)  # the longest is cut
SIZES = {
    "hidden_size": 16,
    "inner_size": 16,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "compress_block_size": 8,
    "compress_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 2,
    "window": 3,
    "max_length": 38,
}
MODELS = {
    "blossom": {},
    "ltis": {"attention": "ltis", "selector": "mean"},
    "stis": {"attention": "stis", "block": "pre_norm", "positions": "learned"},
    "dense": {"attention": "dense"},
    "bert4rec": {"attention": "dense", "causal": False, "objective": "masked"},
    "hstu": {"attention": "silu", "block": "hstu"},
    "gru4rec": {"attention": "gru", "block": "plain", "positions": "none"},
}


def make(**changes):
    """Makes a model whose parameters are large enough that no two blocks score alike."""
    model = BlossomRec(ModelConfig(**SIZES | changes), NUM_ITEMS, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 3), state))
    return model


def histories():
    end = np.cumsum(LENGTHS)
    items = np.random.default_rng(1).integers(1, NUM_ITEMS + 1, end[-1]).astype(np.int32)
    return Histories(items, end - np.array(LENGTHS), end)


def rows_of_their_own(config):
    """Returns one history a row, a mask behind it where the model asks so, and the last tokens."""
    items = np.zeros((len(LENGTHS), config.max_length), np.int32)
    positions = np.full_like(items, -1)
    last = []
    for row, (begin, end) in enumerate(zip(*histories()[1:], strict=True)):
        seen = [*histories().items[begin:end][-config.history_length :], *[MASK] * config.appended]
        items[row, : len(seen)], positions[row, : len(seen)] = seen, range(len(seen))
        last.append(len(seen) - 1)
    return items, positions, np.array(last)


@pytest.mark.parametrize(
    ("name", "own_rows"), [*((name, False) for name in MODELS), ("dense", True)]
)
def test_packed_histories_are_encoded_as_each_alone(name, own_rows, monkeypatch):
    if own_rows:  # as where cuDNN serves
        monkeypatch.setattr(BlossomRec, "_gains_from_own_rows", True)
    model = make(**MODELS[name])
    config = model.config
    (batch,) = history_batches(
        histories(), max_length=config.history_length, batch_users=12, gap=config.appended
    )
    assert len(batch["item_ids"]) < len(LENGTHS)
    graphdef, params = nnx.split(model)

    @jax.jit
    def encode(params, batch, items, positions):
        model = nnx.merge(graphdef, params)
        found = model.encode_next(batch["item_ids"], batch["positions"], batch["last"])
        return found, model(items, positions)

    user = batch.pop("history")
    items, positions, last = rows_of_their_own(config)
    found, every = map(np.asarray, encode(params, batch, items, positions))
    wanted = every[np.arange(len(last)), last][user[user >= 0]]
    error = np.linalg.norm(found[user >= 0] - wanted) / np.linalg.norm(wanted)
    assert error < 1e-5
