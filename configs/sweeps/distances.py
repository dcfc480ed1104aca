"""Which attention finds answers up to 16,384 events back: recall by length of history tells.

    python -m experiments.sweep --config=configs/long_interest.py \
        --sweep=configs/sweeps/distances.py --seeds=1 --workdir=runs/distances \
        --config.train.num_steps=8000 --config.eval.every_steps=2000

Needs a GPU. A model that finds no profile guesses one of four; the two last answers, validation's
and the test's, are learned apart.
"""

MEAN = {"model.selector": "mean"}
UNTRAINED = {"model.selection_gradient": "none"}
SUM = {"model.gate": "sum"}


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "dense",
        "metric": "full_keep/recall@1",
        "rows": {
            "dense": {"model.attention": "dense"},
            "stis": {"model.attention": "stis"},
            "ltis_trained": {"model.attention": "ltis"},
            "ltis_untrained": {"model.attention": "ltis"} | UNTRAINED,
            "ltis_recent": {"model.attention": "ltis", "model.selector": "recent"},
            "ltis_random": {"model.attention": "ltis", "model.selector": "random"},
            "ltis_mean": {"model.attention": "ltis"} | MEAN | UNTRAINED,
            "ltis_mean_trained": {"model.attention": "ltis"} | MEAN,
            "ltis_mean_trained_10000": {"model.attention": "ltis", "model.rope_theta": 1e4} | MEAN,
            "blossom_trained": {},
            "blossom_mean": MEAN | UNTRAINED,
            "sum_trained": SUM,
            "blossom_mean_trained": MEAN,
            "sum_mean_trained": SUM | MEAN,
        },
    }
