"""A generated log with planted long- and short-term interests: needs no file and no network.

    python -m experiments.train --config=configs/synthetic.py --workdir=runs/synthetic

It shows that everything works, and which interests the two attention paths can find.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "synthetic"
    config.data.row_length = 128
    config.model.max_length = 128
    config.train.batch_rows = 64
    config.train.num_epochs = 30
    return config.lock()
