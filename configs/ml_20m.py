"""MovieLens-20M: 138,493 users, 20 million events; items with fewer than five are dropped.

    python -m experiments.train --config=configs/ml_20m.py --workdir=runs/ml_20m

Meant for one or more GPUs: an epoch is 20 million targets. Not run yet: the official archive, its
only source, could not be reached where the other data sets were measured.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "ml_20m"
    config.data.min_user_events = 5
    config.data.min_item_events = 5
    config.data.row_length = 200
    config.model.max_length = 200
    config.model.hidden_size = 128
    config.model.num_heads = 8
    config.train.batch_rows = 256
    return config.lock()
