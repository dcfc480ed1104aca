"""Gowalla, the whole log of SNAP: 6.4 million check-ins of 107,092 users, reduced to its 10-core.

    python -m experiments.train --config=configs/gowalla.py --workdir=runs/gowalla

People return to places, so `full_keep` is the headline. Not run yet: SNAP, its only source, could
not be reached where the other data sets were measured.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "gowalla"
    config.data.min_user_events = 10
    config.data.min_item_events = 10
    config.data.row_length = 200
    config.model.max_length = 200
    config.model.hidden_size = 128
    config.model.num_heads = 8
    config.model.embedding_dropout = 0.5
    config.eval.metric = "full_keep/ndcg@10"
    return config.lock()
