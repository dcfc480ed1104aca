"""Yelp, reviews of 2019, 5-core: 30,431 users, 20,033 items, 316,354 events, half under 8 long.

    python -m experiments.train --config=configs/yelp.py --workdir=runs/yelp

Seven percent of the targets repeat an item of the history, so `full_keep` is the headline.
Histories are short: the dense twin, `--config.model.attention=dense`, sees the same.

Two shared CPU cores took 1,375 s (Blossom) and 557 s (dense) for these, seed 0: test full_keep
recall@10 / ndcg@10 .0625 / .0390 and .0637 / .0394; full .0399 / .0200 and .0411 / .0208.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "yelp"
    config.train.learning_rate = 3e-3  # rows are packed, so a batch holds some 900 users
    config.train.num_epochs = 50
    config.train.schedule = "wsd"
    config.train.patience = 10
    config.eval.every_epochs = 2
    config.model.embedding_dropout = 0.5
    config.model.dropout = 0.4
    config.eval.metric = "full_keep/ndcg@10"
    return config.lock()
