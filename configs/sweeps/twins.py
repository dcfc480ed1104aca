"""Blossom, the choices of its blocks, its dense twin, and SASRec of the published size.

    python -m experiments.sweep --config=configs/ml_1m.py --sweep=configs/sweeps/twins.py \
        --seeds=3 --workdir=runs/ml_1m_twins --config.train.num_steps=2400 \
        --config.train.schedule=wsd --config.train.patience=0 --config.eval.every_steps=600

The first four differ in attention alone. SASRec's row has the sizes of its paper, of which it has
fewer parameters than half.
"""

from configs.models import MODELS

_PUBLISHED_SIZES = {
    "model.hidden_size": 64,
    "model.inner_size": 64,
    "model.num_heads": 1,
    "model.num_kv_heads": 1,
    "model.embedding_dropout": 0.1,
}


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "dense",
        "metric": "full/ndcg@10",
        "rows": {
            "dense": {"model.attention": "dense"},
            "blossom": {},
            "blossom_trained": {"model.selection_gradient": "straight_through"},
            "blossom_mean": {"model.selector": "mean"},
            "sasrec": MODELS["sasrec"] | _PUBLISHED_SIZES,
        },
    }
