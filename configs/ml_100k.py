"""MovieLens-100K: 943 users, 1,682 items, 100,000 events; half of the histories are above 65.

    python -m experiments.train --config=configs/ml_100k.py --workdir=runs/ml_100k

On two CPU cores beside other runs, seed 0, it took 1,244 s (646 s of CPU time): test full/ndcg@10
0.125 and full/recall@10 0.242, 2.9 times popularity's. The catalogue is small, so dropout is high;
without smoothed labels it had 0.116 and 0.221, in validation 0.128 in place of 0.135.
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
    config.train.label_smoothing = 0.2
    config.train.num_epochs = 60
    config.train.schedule = "wsd"
    config.train.patience = 0
    config.eval.every_epochs = 4
    return config.lock()
