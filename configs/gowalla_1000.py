"""Gowalla, the check-ins of 1,000 users: 24,209 places, 157,251 events.

    python -m experiments.train --config=configs/gowalla_1000.py --workdir=runs/gowalla_1000

People return to places: 45% of the targets repeat one, so `full_keep` is the headline.

On an H200 2,000 steps (`--config.train.num_steps=2000 --config.train.schedule=wsd
--config.eval.every_steps=400 --config.train.patience=0`) of three seeds as one program took 36 to
114 s, other runs beside: test full_keep recall@10 / ndcg@10 .2980 / .1837, full .0787 / .0471, of
the dense twin .2993 / .1842 and .0773 / .0473 (docs/results.md).
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "gowalla_1000"
    config.data.row_length = 200
    config.model.max_length = 200
    config.model.dropout = 0.4
    config.model.embedding_dropout = 0.5
    config.train.batch_rows = 32
    config.eval.metric = "full_keep/ndcg@10"
    return config.lock()
