"""Every default of every command, with the meaning of each value."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Returns the defaults, unlocked. A data set's own file changes what differs and locks it."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of initial weights, shuffling and dropout

    config.data = ml_collections.ConfigDict()
    config.data.name = ""  # a name that the registry of data sets knows
    config.data.path = ""  # a file or folder to read instead of looking for one
    config.data.cache_dir = ""  # of downloads and prepared data; "" = the user's cache folder
    config.data.min_user_events = 1  # drop users with fewer events, and
    config.data.min_item_events = 1  # items with fewer, until none is left to drop
    config.data.repeats = "keep"  # "keep" | "drop_consecutive" | "latest" of each user and item
    config.data.split = "leave_one_out"  # or "global_time"
    config.data.valid_time = 0  # Unix seconds: where validation begins, for "global_time"
    config.data.test_time = 0  # and where testing begins
    config.data.row_length = 64  # tokens in a packed training row, at least model.max_length
    config.data.num_workers = 0  # processes that prepare batches; any number, the same batches

    config.model = ml_collections.ConfigDict()
    config.model.block = "post_norm"  # | "pre_norm" | "hstu" | "plain" (nothing around attention)
    config.model.attention = "blossom"  # | "ltis" | "stis" (one path alone) | "dense"
    # | "dense_gated" (dense instead of the long-term path) | "linear" | "silu" | "gru" | "mamba"
    config.model.positions = "rope"  # | "learned" | "none"; "gru" and "mamba" cannot take "rope"
    config.model.rope_theta = 10000.0  # as released; 1e6 to see far: docs/hyperparameters.md
    config.model.objective = "next"  # or "masked": predict hidden events; causal must be False then
    config.model.hidden_size = 64
    config.model.inner_size = 256
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.compress_block_size = 32
    config.model.compress_stride = 16
    config.model.selection_block_size = 16
    config.model.num_selected_blocks = 4
    config.model.window = 8
    config.model.max_length = 50  # events that the model sees at most
    config.model.selection_gradient = "none"  # or "straight_through"
    # What chooses the blocks. "compressor": as in the paper, trained only if selection_gradient is
    # not "none"; "mean": by their average key. Controls: "recent": the last N; "random": N by lot,
    # the same for all histories; "oracle": those of most dense attention (quadratic); "summary4",
    # "summary16": none, but 4 or 16 averages of what lies before a window. As many keys with any.
    config.model.selector = "compressor"
    config.model.selector_seed = 0  # of "random"
    config.model.gate = "learned"  # of the two paths; or none: their "sum", their "average"
    config.model.gate_bias_ltis = 0.0  # initial bias of the learned gate: long-term path, and
    config.model.gate_bias_stis = 0.0  # short-term path; the authors' attention alone has -2 and 2
    config.model.dropout = 0.2
    config.model.embedding_dropout = 0.2
    config.model.causal = True
    config.model.dtype = "float32"  # of activations; parameters are float32 always
    config.model.implementation = ""  # of the attention ops; "" = the best for this device
    config.model.remat = "none"  # | "block": compute blocks anew in the backward pass, for memory
    config.model.layer_norm_epsilon = 1e-12
    config.model.grow_items = False  # whether train.init_from may know fewer items than the log

    config.train = ml_collections.ConfigDict()
    config.train.num_epochs = 200
    config.train.num_steps = 0  # if set, it counts instead of num_epochs
    config.train.batch_rows = 128  # packed rows a step, over all devices
    config.train.init_from = ""  # workdir of a run whose last checkpoint this one starts from
    config.train.target = "all"  # every position predicts its next item; or the "last" alone
    config.train.mask_probability = 0.2  # of each event to be hidden, for model.objective="masked"
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.schedule = "constant"  # after the warm-up; "cosine"; "wsd" falls in the last fifth
    config.train.weight_decay = 0.01
    config.train.b1 = 0.9
    config.train.b2 = 0.98
    config.train.clip_norm = 1.0  # 0 = no clipping
    config.train.accumulate_steps = 1  # steps averaged into one update
    # Of the item table. "dense" updates all rows; "lazy" those that a step reads, for large
    # catalogues: the others stay as they are, without weight decay. Needs a loss by samples.
    config.train.item_optimizer = "dense"
    # "cross_entropy" over all items; by samples "sampled_softmax", "gbce", "bce" or "bpr"
    config.train.loss = "cross_entropy"
    config.train.loss_implementation = ""  # of "cross_entropy": "xla", "triton"; "" = best here
    config.train.loss_chunk = 0  # tokens whose logits exist at once, at most; 0 suits the device
    config.train.label_smoothing = 0.0  # probability spread over all items; "cross_entropy" alone
    config.train.num_negatives = 256  # items a target is compared with, by the other losses
    config.train.negatives = "uniform"  # or "popularity": as often as they occur in training
    config.train.shared_negatives = True  # one draw for all tokens of a step, or one for each
    config.train.gbce_t = 0.75  # calibration of "gbce": 0 is plain BCE
    # Evaluations after the warm-up without a better one, before it stops; 0 = never.
    config.train.patience = 10
    config.train.stop_at = 0.0  # value of eval.metric in validation at which it stops; 0 = never

    config.eval = ml_collections.ConfigDict()
    config.eval.every_epochs = 1
    config.eval.every_steps = 0  # if set, it counts instead of every_epochs
    config.eval.batch_users = 128
    config.eval.chunk_items = 32768  # items scored at once; bounds memory, changes no rank
    config.eval.metric = "full/ndcg@10"  # of validation: chooses the checkpoint, stops early
    config.eval.ks = (1, 5, 10, 20)
    config.eval.num_negatives = 100
    config.eval.negatives_seed = 0

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 0  # besides those at every evaluation; 0 = none
    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 50

    config.mesh = ml_collections.ConfigDict()
    # Rows of batches are split over all data * model devices; a run may go on with other numbers.
    config.mesh.data = -1  # copies of the item table; -1 = as many as there are devices for
    config.mesh.model = 1  # devices over which each copy is split, by its rows
    return config
