"""What each part of the model is worth: paths, gate, compressor, and a really sparse setting.

    python -m experiments.sweep --config=configs/ml_1m.py --sweep=configs/sweeps/ablation.py \
        --seeds=3 --workdir=runs/ml_1m_ablation

The sparse rows are for data whose histories the released sizes see whole.
"""

from configs.models import SPARSE

TRAINED = {"model.selection_gradient": "straight_through"}


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "blossom",
        "metric": "full/ndcg@10",
        "rows": {
            "blossom": {},
            "without_ltis": {"model.attention": "stis"},
            "without_stis": {"model.attention": "ltis"},
            "gate_sum": {"model.gate": "sum"},
            "gate_average": {"model.gate": "average"},
            "gate_starts_short": {"model.gate_bias_ltis": -2.0, "model.gate_bias_stis": 2.0},
            "gate_starts_long": {"model.gate_bias_ltis": 2.0, "model.gate_bias_stis": -2.0},
            "compressor_trained": TRAINED,
            "sparse": SPARSE,
            "sparse_trained": SPARSE | TRAINED,
            "sparse_without_stis": SPARSE | {"model.attention": "ltis"},
            "dense": {"model.attention": "dense"},
        },
    }
