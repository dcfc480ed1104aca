"""MovieLens-100K, sized for two CPU cores: what `make quickstart` runs.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart

It trains on MovieLens-100K or stops. Where that cannot be had, configs/synthetic.py needs no
download.
"""

import ml_collections

from configs import ml_100k


def get_config() -> ml_collections.ConfigDict:
    """Returns the config, locked."""
    config = ml_100k.get_config()
    with config.unlocked():
        config.train.num_epochs = 60
    return config.lock()
