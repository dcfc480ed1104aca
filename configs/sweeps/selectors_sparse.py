"""Does choosing blocks earn its cost where histories are short? As selectors.py, with small blocks.

    python -m experiments.sweep --config=configs/yelp.py \
        --sweep=configs/sweeps/selectors_sparse.py --seeds=3 --workdir=runs/yelp_selectors

With two blocks of 4 beside the own one, something is left out from 13 events on.
"""

from configs.models import SPARSE

TRAINED = {"model.selection_gradient": "straight_through"}


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "learned",
        "metric": "full/ndcg@10",
        "rows": {
            "learned": SPARSE | TRAINED,
            "untrained": SPARSE | {"model.selection_gradient": "none"},
            "mean": SPARSE | {"model.selector": "mean"},
            "mean_trained": SPARSE | {"model.selector": "mean"} | TRAINED,
            "random": SPARSE | {"model.selector": "random"},
            "recent": SPARSE | {"model.selector": "recent"},
            "oracle": SPARSE | {"model.selector": "oracle"},
            "summary4": SPARSE | {"model.selector": "summary4"},
            "dense_cut": {"model.attention": "dense", "model.max_length": 12},  # (N + 1) S
            "dense": {"model.attention": "dense"},
        },
    }
