"""Amazon Video Games 2014: 31,013 users, 23,715 items, 287,107 events, unfiltered.

    python -m experiments.train --config=configs/amazon_video_games.py --workdir=runs/video_games

Users with fewer than three events train only. Histories are short: half are under 7 long.

On an H200, three seeds, with `--config.train.num_epochs=50 --config.train.patience=0
--config.eval.every_epochs=10`: test full recall@10 / ndcg@10 .1117 / .0621, of the dense twin .1137
/ .0634 (docs/results.md; its time was not kept).
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "amazon_video_games"
    config.model.embedding_dropout = 0.5
    config.model.dropout = 0.4
    return config.lock()
