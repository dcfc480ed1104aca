"""Does choosing blocks earn its cost? What chooses them, at as many keys for each query.

    python -m experiments.sweep --config=configs/ml_1m.py --sweep=configs/sweeps/selectors.py \
        --seeds=3 --workdir=runs/ml_1m_selectors

Sizes are the released ones, at which nothing is left out up to 80 events: histories must be longer
for the rows to differ. For short ones there is selectors_sparse.py; for whole histories add
`--config.model.max_length=2000 --config.data.row_length=2000 --config.train.batch_rows=8`.
"""

TRAINED = {"model.selection_gradient": "straight_through"}


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "learned",
        "metric": "full/ndcg@10",
        "rows": {
            "learned": TRAINED,
            "untrained": {"model.selection_gradient": "none"},
            "mean": {"model.selector": "mean"},
            "mean_trained": {"model.selector": "mean"} | TRAINED,
            "random": {"model.selector": "random"},
            "recent": {"model.selector": "recent"},
            "oracle": {"model.selector": "oracle"},
            "summary4": {"model.selector": "summary4"},
            "summary16": {"model.selector": "summary16"},
            "dense_cut": {"model.attention": "dense", "model.max_length": 80},  # (N + 1) S
            "dense": {"model.attention": "dense"},
        },
    }
