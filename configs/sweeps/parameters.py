"""The sizes of the attention, one changed at a time: l, s, S, N, W, key/value heads and layers.

    python -m experiments.sweep --config=configs/ml_1m.py --sweep=configs/sweeps/parameters.py \
        --seeds=3 --workdir=runs/ml_1m_parameters

"released" has l=32 s=16 S=16 N=4 W=8, two key/value heads and two layers.
"""


def get_sweep() -> dict:
    """Returns the sweep."""
    rows = {"released": {}}
    for letter, key, values in (
        ("l", "compress_block_size", (16, 64)),
        ("s", "compress_stride", (4, 8)),
        ("N", "num_selected_blocks", (1, 2, 8, 16)),
        ("W", "window", (1, 2, 4, 16, 32)),
        ("kv_heads", "num_kv_heads", (1, 4)),
        ("layers", "num_layers", (1, 3, 4)),
    ):
        rows |= {f"{letter}={value}": {f"model.{key}": value} for value in values}
    for block in (4, 8, 32, 64):  # N such that a query sees as many keys, and s as S allows
        sizes = {
            "model.selection_block_size": block,
            "model.compress_stride": min(block, 16),
            "model.num_selected_blocks": 64 // block,
        }
        rows[f"S={block}"] = sizes
    return {"reference": "released", "metric": "full/ndcg@10", "rows": rows}
