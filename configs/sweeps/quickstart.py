"""Both paths, the short one alone, and dense attention: the smallest sweep, and the format of all.

    python -m experiments.sweep --config=configs/ml_100k.py --sweep=configs/sweeps/quickstart.py \
        --seeds=3 --workdir=runs/attentions

A sweep is a file with a function `get_sweep` that returns a dict, data only:

    reference   the row that every other one is compared with
    metric      of the test, higher is better: what is compared. The checkpoint and the winner of
                the grid are chosen by `eval.metric` of the config, on validation.
    rows        {name: {config key: value}}: what a row changes in the file of --config, such as
                {"dense": {"model.attention": "dense"}}. Keys and types are those of
                configs/common.py. The name of a row is a folder too: letters, digits and -_.+=
    grid        {config key: values to try}: every row gets every combination, trained with the
                first seeds; the one with the best validation metric then gets the other seeds. No
                row may set a key of the grid itself. {} = nothing to tune
    trials      how many combinations of the grid to try, the same ones for every row, drawn by a
                fixed seed; 0 = all
    tuning_seeds  with how many seeds each is tried. A single one may choose what trains by luck:
                MovieLens-1M's dense model failed with four of five at the rate that it won with

The last three may be left out; then nothing is tuned, or with one seed. A row for a data set alone,
such as a length, takes several keys: {"length_200": {"model.max_length": 200, "data.row_length":
200}}.
"""


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "reference": "blossom",
        "metric": "full/ndcg@10",
        "rows": {
            "blossom": {},
            "short_path": {"model.attention": "stis"},
            "dense": {"model.attention": "dense"},
        },
        "grid": {},
        "trials": 0,
    }
