"""A generated log whose answers lie up to 16,384 events back: what the long-term path is for.

    python -m experiments.train --config=configs/long_interest.py --workdir=runs/long_interest

Histories have 128, 256, ..., 16,384 events, as many events in all of each length, and end on a
question that only the first events of the history answer: recall by length of history, in the
table that the run prints, is recall by distance. Without the profile it is 1/4.

A step takes 1.25 CPU seconds. docs/results.md has what was found, by
configs/sweeps/distances.py, which wants ten times the steps and a GPU.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "long_interest"
    config.data.row_length = 16384
    config.model.max_length = 16384
    config.model.rope_theta = 1e6
    config.model.num_layers = 1
    config.model.inner_size = 128
    config.model.num_heads = 2
    config.model.num_kv_heads = 1
    config.model.selection_gradient = "straight_through"
    config.model.dropout = 0.0
    config.model.embedding_dropout = 0.0
    config.train.batch_rows = 1
    config.train.num_steps = 400
    config.train.warmup_steps = 20
    config.train.schedule = "wsd"
    config.train.learning_rate = 5e-3
    config.train.weight_decay = 0.0
    config.eval.every_steps = 400
    config.eval.metric = "full_keep/recall@1"
    config.log.every_steps = 10
    return config.lock()
