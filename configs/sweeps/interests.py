"""What keeps a model from finding planted interests: the gate, the choice of blocks, or neither.

    python -m experiments.sweep --config=configs/interests.py --sweep=configs/sweeps/interests.py \
        --seeds=3 --workdir=runs/interests

Rows that begin with `all_` leave nothing out: with S=8, 15 blocks and the own one are 128 events.
"""

ALL = {"model.num_selected_blocks": 15}
LTIS = {"model.attention": "ltis"}
MEAN = {"model.selector": "mean"}
SUM = {"model.gate": "sum"}
TRAINED = {"model.selection_gradient": "straight_through"}


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "dense",
        "metric": "full_keep/recall@1",
        "rows": {
            "dense": {"model.attention": "dense"},
            "dense_gated": {"model.attention": "dense_gated"},
            "all_ltis": ALL | LTIS,
            "all_ltis_trained": ALL | LTIS | TRAINED,
            "all_both": ALL,
            "all_both_trained": ALL | TRAINED,
            "all_average": ALL | {"model.gate": "average"},
            "all_starts_long": ALL | {"model.gate_bias_ltis": 2.0, "model.gate_bias_stis": -2.0},
            "all_starts_open": ALL | {"model.gate_bias_ltis": 2.0, "model.gate_bias_stis": 2.0},
            "all_slow": ALL | {"train.learning_rate": 1e-3},
            "stis": {"model.attention": "stis"},
            "both": {},
            "both_trained": TRAINED,
            "sum_trained": SUM | TRAINED,
            "mean_sum_trained": MEAN | SUM | TRAINED,
            "ltis_trained": LTIS | TRAINED,
            "ltis_mean_trained": LTIS | MEAN | TRAINED,
        },
    }
