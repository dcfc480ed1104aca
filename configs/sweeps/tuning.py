"""Blossom, its dense twin and Mamba4Rec at equal tuning: one grid for all, winners by validation.

    python -m experiments.sweep --config=configs/ml_1m.py --sweep=configs/sweeps/tuning.py \
        --seeds=3 --workdir=runs/ml_1m_tuning --config.train.num_steps=2400 \
        --config.train.schedule=wsd --config.train.patience=0 --config.eval.every_steps=600

Twelve trials of a row, each with three seeds: with one, dense attention won at a learning rate at
which four seeds of five fail to train. `--together` trains the three as one program. With
`--config.model.num_layers=4` and a workdir of its own it tunes deeper models.
"""

from configs.models import MODELS


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "dense",
        "metric": "full/ndcg@10",
        "tuning_seeds": 3,
        "rows": {
            "dense": MODELS["dense"],
            "blossom": MODELS["blossomrec"],
            "mamba4rec": MODELS["mamba4rec"],
        },
        "grid": {
            "train.learning_rate": (1e-3, 2e-3, 4e-3, 8e-3),
            "model.dropout": (0.1, 0.2, 0.3),
        },
    }
