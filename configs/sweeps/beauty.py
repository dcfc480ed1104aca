"""Fourteen settings for Amazon Beauty; its config has the one that is best in validation.

    python -m experiments.sweep --config=configs/amazon_beauty.py --sweep=configs/sweeps/beauty.py \
        --seeds=3 --together --workdir=runs/beauty_settings --config.model.dtype=bfloat16 \
        --config.train.patience=0 --config.eval.every_epochs=10

The table is of the test; what chose is `valid` in the results.json of the runs. For dense attention
add `--config.model.attention=dense`, and take another workdir. docs/results.md tells how these
fourteen were come by.
"""

_NARROW = {
    "model.hidden_size": 64,
    "model.inner_size": 256,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.embedding_dropout": 0.5,
    "model.dropout": 0.4,
    "train.learning_rate": 3e-3,
    "train.batch_rows": 128,
    "train.label_smoothing": 0.15,
}
# Layers, learning rate, epochs, dropout, heads. The config has the first.
_WIDE = (
    (1, 1e-3, 100, 0.3, 2),
    (1, 1e-3, 60, 0.3, 2),
    (1, 1.5e-3, 60, 0.3, 2),
    (1, 2e-3, 60, 0.3, 2),
    (1, 3e-3, 60, 0.3, 2),
    (1, 2e-3, 60, 0.2, 2),
    (2, 1e-3, 100, 0.3, 2),
    (2, 1e-3, 60, 0.3, 2),
    (2, 1.5e-3, 60, 0.3, 2),
    (2, 2e-3, 60, 0.3, 2),
    (2, 1e-3, 60, 0.2, 2),
    (2, 1e-3, 60, 0.4, 2),
    (2, 1e-3, 60, 0.3, 4),
)


def _wide(layers: int, rate: float, epochs: int, dropout: float, heads: int) -> dict[str, object]:
    return {
        "model.num_layers": layers,
        "train.learning_rate": rate,
        "train.num_epochs": epochs,
        "model.dropout": dropout,
        "model.num_heads": heads,
    }


def get_sweep() -> dict:
    """Returns the sweep."""
    names = ("layers", "rate", "epochs", "dropout", "heads")
    rows = {
        "-".join(f"{name}={value:g}" for name, value in zip(names, values, strict=True)): _wide(
            *values
        )
        for values in _WIDE
    }
    return {
        "reference": next(iter(rows)),
        "metric": "full/ndcg@10",
        "rows": rows | {"narrow": _NARROW},
    }
