"""Each block and objective with its own attention, and with Blossom's.

    python -m experiments.sweep --config=configs/ml_1m.py --sweep=configs/sweeps/blocks.py \
        --seeds=3 --workdir=runs/blocks

Rows are by pairs. results.json of every run has quality, and memory as `step_bytes`, what one
training step holds at once on one device.
"""

from configs.models import MODELS

_PAIRS = {
    "post_norm": ("dense", "blossomrec"),
    "pre_norm": ("sasrec", "sasrec_blossom"),
    "bert4rec": ("bert4rec", "bert4rec_blossom"),
    "hstu": ("hstu", "hstu_blossom"),
}


def get_sweep() -> dict:
    """Returns the sweep; quickstart.py tells its format."""
    return {
        "reference": "post_norm-own",
        "metric": "full/ndcg@10",
        "rows": {
            f"{block}-{kind}": MODELS[model]
            for block, pair in _PAIRS.items()
            for kind, model in zip(("own", "blossom"), pair, strict=True)
        },
    }
