"""Yelp, reviews of 2019, 5-core: 30,431 users, 20,033 items, 316,354 events, half under 8 long.

    python -m experiments.train --config=configs/yelp.py --workdir=runs/yelp

Seven percent of the targets repeat an item of the history, so `full_keep` is the headline; as
everywhere, `full` on validation chooses the checkpoint. Histories are short: the dense twin,
`--config.model.attention=dense`, sees the same.

Two CPU cores took 589 s of training, on a slower machine 1,110 s, seed 0: test full_keep recall@10
/ ndcg@10 .0631 / .0391, full .0412 / .0209. The dense twin took 1,470 s on two busy ones:
full_keep .0623 / .0390, full .0410 / .0209, full_keep/coverage@10 .92.
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
    config.eval.batch_users = 256
    config.train.weight_decay = 0.1
    config.model.embedding_dropout = 0.6
    config.model.dropout = 0.5
    return config.lock()
