"""A generated log small enough to try many models on: can this attention find planted interests?

    python -m experiments.train --config=configs/interests.py --workdir=runs/interests

6,000 histories of 128 events and 200 items, and one layer: what attention finds is what the model
knows. Half of the users are asked for an answer, the first of a question in validation, the second
in the test; a model may learn one of the two and not the other.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "interests"
    config.data.row_length = 128
    config.model.max_length = 128
    config.model.num_layers = 1
    config.model.hidden_size = 32
    config.model.inner_size = 64
    config.model.num_heads = 2
    config.model.num_kv_heads = 1
    config.model.compress_block_size = 16
    config.model.compress_stride = 8
    config.model.selection_block_size = 8
    config.model.dropout = 0.0
    config.model.embedding_dropout = 0.0
    config.train.batch_rows = 32
    config.train.num_steps = 4000
    config.train.learning_rate = 5e-3
    config.train.schedule = "cosine"
    config.train.patience = 0
    config.eval.every_steps = 1000
    config.eval.metric = "full_keep/recall@1"
    return config.lock()
