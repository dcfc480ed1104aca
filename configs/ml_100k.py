"""MovieLens-100K: 943 users, 1,682 items, 100,000 events; half of the histories are above 65.

    python -m experiments.train --config=configs/ml_100k.py --workdir=runs/ml_100k

The catalogue is small, so dropout is high.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "ml_100k"
    config.data.row_length = 200
    config.model.max_length = 200
    config.model.dropout = 0.4
    config.model.embedding_dropout = 0.4
    config.train.batch_rows = 32
    config.train.learning_rate = 2e-3
    return config.lock()
