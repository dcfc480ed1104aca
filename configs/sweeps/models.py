"""BlossomRec beside every baseline that learns, and in a really sparse setting, on short histories.

    python -m experiments.sweep --config=configs/yelp.py --sweep=configs/sweeps/models.py \
        --seeds=3 --workdir=runs/yelp_models --config.train.num_epochs=50 \
        --config.train.patience=0 --config.eval.every_epochs=10

The sparse rows leave something out from 13 events on; the released sizes, from 81.
"""

from configs.models import MODELS, SPARSE

_TRAINED = {"model.selection_gradient": "straight_through"}
_NAMES = (
    "dense",
    "blossomrec",
    "sasrec",
    "linrec",
    "gru4rec",
    "hstu",
    "mamba4rec",
    "bert4rec",
)


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "dense",
        "metric": "full/ndcg@10",
        "rows": {name: MODELS[name] for name in _NAMES}
        | {"blossom_sparse": SPARSE, "blossom_sparse_trained": SPARSE | _TRAINED},
    }
