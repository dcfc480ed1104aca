"""Models by name, BlossomRec and its baselines: what each changes in the section `model`.

    python -m experiments.train --config=configs/yelp.py --model=sasrec --workdir=runs/yelp_sasrec

The sizes are those of the config; where a paper has sizes of its own, docs/baselines.md gives the
command. A value on the command line counts more than a model's.
"""

_BERT = {"model.objective": "masked", "model.causal": False, "model.positions": "learned"}
_SASREC = {"model.block": "pre_norm", "model.positions": "learned"}
_HSTU = {"model.block": "hstu", "model.positions": "learned"}

# Sizes that leave something out from 13 events on; the released ones do so from 81.
SPARSE = {
    "model.compress_block_size": 8,
    "model.compress_stride": 4,
    "model.selection_block_size": 4,
    "model.num_selected_blocks": 2,
}

MODELS: dict[str, dict[str, object]] = {
    "blossomrec": {},
    # The paper's block with another attention.
    "dense": {"model.attention": "dense"},
    "dense_gated": {"model.attention": "dense_gated"},
    "linrec": {"model.attention": "linear", "model.positions": "learned"},
    "mamba4rec": {"model.attention": "mamba", "model.positions": "none"},
    # Other blocks and objectives, with their own attention and with Blossom's.
    "sasrec": {**_SASREC, "model.attention": "dense"},
    "sasrec_blossom": {**_SASREC, "model.attention": "blossom"},
    "bert4rec": {**_BERT, "model.attention": "dense"},
    "bert4rec_blossom": {**_BERT, "model.attention": "blossom"},
    "hstu": {**_HSTU, "model.attention": "silu"},
    "hstu_blossom": {**_HSTU, "model.attention": "blossom"},
    "gru4rec": {"model.block": "plain", "model.attention": "gru", "model.positions": "none"},
}
