"""Does length pay? Blossom and dense attention over ever more events of each history.

    python -m experiments.sweep --config=configs/ml_1m.py --sweep=configs/sweeps/lengths.py \
        --seeds=3 --workdir=runs/ml_1m_lengths --config.train.num_steps=2400 \
        --config.train.schedule=wsd --config.train.patience=0 --config.eval.every_steps=600

Training rows are as long as the histories may be, and as many as make 16,000 tokens a step, so that
every row of the table trains on as many tokens and no attention pays for more than its length.
"""

_TOKENS = 16_000


def get_sweep() -> dict:
    """Returns the sweep."""
    rows: dict[str, dict] = {}
    for length in (50, 100, 200, 500, 1000, 2000):
        sizes = {
            "model.max_length": length,
            "data.row_length": length,
            "train.batch_rows": _TOKENS // length,
        }
        rows[f"blossom_{length}"] = sizes
        rows[f"dense_{length}"] = sizes | {"model.attention": "dense"}
    return {"reference": "blossom_50", "metric": "full/ndcg@10", "rows": rows}
