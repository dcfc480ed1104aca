"""MovieLens-1M: 6,040 users, 3,416 items, 999,611 events; half of the histories are above 96.

    python -m experiments.train --config=configs/ml_1m.py --workdir=runs/ml_1m

The sizes of the attention are the released ones. More than half of the users have histories
longer than the (N + 1) S = 80 events below which Blossom attends to everything.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "ml_1m"
    config.data.row_length = 200
    config.model.max_length = 200
    config.model.hidden_size = 128
    config.model.num_heads = 8
    config.train.batch_rows = 64
    config.eval.every_epochs = 2
    return config.lock()
