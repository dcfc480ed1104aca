"""Amazon Beauty 2014, 5-core: 22,363 users, 12,101 items, 198,502 events, half under 7 long.

    python -m experiments.train --config=configs/amazon_beauty.py --workdir=runs/beauty

Histories are short: the dense twin, `--config.model.attention=dense`, sees the same.

Two shared CPU cores took 2,091 s of training, seed 0: validation full/ndcg@10 .0759; test full
recall@10 / ndcg@10 .0980 / .0599, full_keep .0896 / .0458, full/coverage@10 .93. The dense twin
took 2,354 s on busier ones: validation .0763, test full .0993 / .0606, full_keep .0904 / .0456,
full/coverage@10 .93. docs/results.md tells how these settings were found.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "amazon_beauty"
    config.train.learning_rate = 1e-3
    config.train.batch_rows = 64  # packed, so a batch holds some 700 users
    config.train.label_smoothing = 0.2
    config.train.num_epochs = 100
    config.train.schedule = "wsd"
    config.train.patience = 10
    config.eval.every_epochs = 5
    config.model.hidden_size = 128
    config.model.inner_size = 512
    config.model.num_layers = 1
    config.model.num_heads = 2
    config.model.embedding_dropout = 0.7
    config.model.dropout = 0.3
    return config.lock()
