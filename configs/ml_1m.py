"""MovieLens-1M: 6,040 users, 3,416 items, 999,611 events; half of the histories are above 96.

    python -m experiments.train --config=configs/ml_1m.py --workdir=runs/ml_1m

The sizes of the attention are the released ones. More than half of the users have histories
longer than the (N + 1) S = 80 events below which Blossom attends to everything.

On an H200 2,400 steps (`--config.train.num_steps=2400 --config.train.schedule=wsd
--config.train.patience=0 --config.eval.every_steps=600`) of five seeds as one program took 73 to
251 s, other runs beside: test full recall@10 / ndcg@10 .3371 / .1978, of the dense twin .3373 /
.1983. With a learning rate of 4e-3 and bf16 both have .204 (docs/results.md).
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
