"""MovieLens-100K, sized for two CPU cores: what `make quickstart` runs.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

On two idle CPU cores it took 283 s, training at 15,000 tokens a second: test full/ndcg@10 0.124,
which is 2.8 times popularity's 0.0436, and full/recall@10 0.235. As many steps had taken 170 to
376 s on other days, by how fast the machine was.

It trains on MovieLens-100K or stops. Where that cannot be had, configs/synthetic.py needs no
download.
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
    config.train.num_epochs = 40
    config.eval.every_epochs = 2
    return config.lock()
