"""Gowalla, the check-ins around New York City, 5-core: 3,456 users, 6,568 places, 101,687 events.

    python -m experiments.train --config=configs/gowalla_nyc.py --workdir=runs/gowalla_nyc

People return to places: 31% of the targets repeat one, so `full_keep` is the headline. Dropout and
batch are those of gowalla_1000.py, untuned. On an H200 2,000 steps of three seeds together took
33 s: test full_keep recall@10 / ndcg@10 .2840 / .1816, full .1068 / .0653 (docs/results.md).
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "gowalla_nyc"
    config.data.min_user_events = 5
    config.data.min_item_events = 5
    config.data.row_length = 200
    config.model.max_length = 200
    config.model.dropout = 0.4
    config.model.embedding_dropout = 0.5
    config.train.batch_rows = 32
    config.eval.metric = "full_keep/ndcg@10"
    return config.lock()
