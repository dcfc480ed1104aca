"""Your own log of users, items and times.

    python -m experiments.prepare_data --input=log.csv --user-column=user --item-column=item \
        --time-column=time --output=DIR
    python -m experiments.train --config=configs/custom.py --config.data.path=DIR --workdir=runs/own

Set `model.max_length` near the length that most histories reach, and `data.row_length` to the
same or a little more.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = common.get_config()
    config.data.name = "custom"
    return config.lock()
