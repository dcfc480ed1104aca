"""Builds what a config describes, for every command that trains or uses a model."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
import optax

from blossom_jax import data, dense_attention, model, optimizer, sharding
from blossom_jax.compression import is_compressor_parameter
from blossom_jax.data.pipeline import TrainStream
from blossom_jax.data.windows import training_windows
from blossom_jax.errors import MissingFileError, UserError
from blossom_jax.losses import LossConfig
from blossom_jax.losses.objective import FULL
from blossom_jax.model import BlossomRec, ModelConfig
from blossom_jax.schedule import Schedule
from pallas_kernels import capable


def load_data(config: ml_collections.ConfigDict) -> tuple[data.Interactions, data.Split]:
    """Returns the log of `config.data`, and which events train, validate and test."""
    interactions = _load_log(config)
    if config.data.split == "leave_one_out":
        return interactions, data.leave_one_out(interactions)
    if config.data.split == "global_time":
        split = data.global_time(
            interactions, valid_time=config.data.valid_time, test_time=config.data.test_time
        )
        return interactions, split
    raise UserError(
        f"data.split must be 'leave_one_out' or 'global_time', got {config.data.split!r}"
    )


def _load_log(config: ml_collections.ConfigDict) -> data.Interactions:
    try:
        return data.load_dataset(
            config.data.name,
            path=config.data.path,
            cache_dir=config.data.cache_dir,
            min_user_events=config.data.min_user_events,
            min_item_events=config.data.min_item_events,
            repeats=config.data.repeats,
        )
    except MissingFileError as error:
        raise UserError(f"{error}; configs/synthetic.py needs no file and no network") from error


def check_data(interactions: data.Interactions, content_hash: str) -> None:
    """Refuses to go on with other data than a run began with.

    Args:
      interactions: The log as it is now.
      content_hash: Of the log as the run's checkpoint remembers it.

    Raises:
      UserError: They differ.
    """
    if interactions.content_hash != content_hash:
        raise UserError(
            f"the data of {interactions.name} changed since this run began: content hash "
            f"{content_hash} then, {interactions.content_hash} now; choose another --workdir"
            " (and --config.train.init_from=DIR, to train on from the last checkpoint of a run)"
        )


def check_finished(config: ml_collections.ConfigDict, results: dict) -> None:
    """Refuses to answer for other data than a finished run was trained on.

    Only a prepared log of the user's own can be another under the same config, and only if it is
    still there.

    Args:
      config: Of the command.
      results: results.json of the run.

    Raises:
      UserError: They differ.
    """
    if not config.data.path or "data" not in results:
        return
    try:
        interactions, _ = load_data(config)
    except UserError:
        return
    check_data(interactions, results["data"]["content_hash"])


def make_stream(
    config: ml_collections.ConfigDict, interactions: data.Interactions, split: data.Split
) -> TrainStream:
    """Returns this host's part of the packed training batches."""
    masked = config.model.objective == "masked"
    target = "masked" if masked else config.train.target
    return TrainStream(
        interactions,
        training_windows(interactions, split, config.model.max_length, target),
        row_length=config.data.row_length,
        batch_rows=config.train.batch_rows,
        seed=config.seed,
        num_workers=config.data.num_workers,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
        target=target,
    )


def check_objective(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where what is to be predicted does not fit how it is trained."""
    target, probability = config.train.target, config.train.mask_probability
    if target not in ("all", "last"):
        raise UserError(f"train.target must be 'all' or 'last', got {target!r}")
    if not 0 < probability < 1:
        raise UserError(f"train.mask_probability must lie between 0 and 1, got {probability}")
    if config.model.objective == "masked":
        if target != "all":
            raise UserError(
                f"train.target={target!r} is for model.objective='next': with 'masked', the hidden "
                "events are the targets; leave train.target='all'"
            )
    elif target == "all" and not config.model.causal:
        raise UserError(
            "model.causal=false would show every token the item that it is to predict: "
            "train.target must be 'last' then, or model.objective 'masked'"
        )


def has_lazy_items(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> bool:
    """Returns whether a step updates only the rows of the item table that it reads.

    Raises:
      UserError: `train.item_optimizer` is unknown, or "lazy" where that cannot work.
    """
    train, split = config.train, mesh.shape[sharding.MODEL]
    if train.item_optimizer not in ("dense", "lazy"):
        raise UserError(
            f"train.item_optimizer must be 'dense' or 'lazy', got {train.item_optimizer!r}"
        )
    if train.item_optimizer == "dense":
        return False
    for hinders, why in (
        (
            train.loss == FULL,
            f"a step with train.loss={FULL} reads all: choose a loss by samples, for example "
            "train.loss=sampled_softmax",
        ),
        (
            not train.shared_negatives,
            "train.shared_negatives=false reads train.num_negatives more for each token: set it "
            "to true",
        ),
        (
            train.accumulate_steps > 1,
            f"train.accumulate_steps={train.accumulate_steps} makes one update of several steps: "
            "set it to 1",
        ),
        (split > 1, f"mesh.model={split} splits them over devices: set it to 1"),
    ):
        if hinders:
            raise UserError(
                "train.item_optimizer=lazy updates the rows of the item table that a step reads, "
                f"but {why}, or leave train.item_optimizer=dense"
            )
    return True


def model_config(config: ml_collections.ConfigDict) -> ModelConfig:
    """Returns the section `config.model`, checked."""
    return ModelConfig(**config.model)


def model_maker(config: ml_collections.ConfigDict, num_items: int) -> Callable[[], BlossomRec]:
    """Returns a function that builds the model with its initial parameters."""
    return model.model_maker(model_config(config), num_items, config.seed)


def make_schedule(config: ml_collections.ConfigDict, steps_per_epoch: int) -> Schedule:
    """Returns when what happens, in steps."""
    return Schedule(
        num_steps=config.train.num_steps or config.train.num_epochs * steps_per_epoch,
        log_every=config.log.every_steps,
        evaluate_every=config.eval.every_steps or config.eval.every_epochs * steps_per_epoch,
        checkpoint_every=config.checkpoint.every_steps,
        patience=config.train.patience,
        metric=config.eval.metric,
        stop_at=config.train.stop_at,
        warmup=config.train.warmup_steps * config.train.accumulate_steps,
    )


def loss_config(config: ml_collections.ConfigDict) -> LossConfig:
    """Returns which loss is minimised."""
    names = (field.name for field in dataclasses.fields(LossConfig))
    return LossConfig(**{name: config.train[name] for name in names})


def make_optimizer(
    config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
    """Returns the optimizer; without a selection gradient the compressor is left as it is."""
    train = config.train
    trains_all = config.model.selection_gradient != "none"
    return optimizer.make_optimizer(
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup_steps,
        schedule=train.schedule,
        total_steps=num_steps,
        weight_decay=train.weight_decay,
        b1=train.b1,
        b2=train.b2,
        clip_norm=train.clip_norm,
        accumulate_steps=train.accumulate_steps,
        frozen=(lambda path: False) if trains_all else is_compressor_parameter,
    )


def served_by(config: ModelConfig) -> str:
    """Says what serves dense attention to packed rows, as in training; else ""."""
    if not config.attention.startswith("dense"):
        return ""
    return f" (attention by {dense_attention.implementation(config, packed=True)})"


def dtype_hint(dtype: str, device: jax.Device) -> str:
    """Says that a GPU would train faster in bf16, where the config has f32; else ""."""
    if dtype != "float32" or capable.refusal(device):
        return ""
    return (
        " On this GPU --config.model.dtype=bfloat16 takes less time and memory, and was as good on "
        "MovieLens-1M (docs/hyperparameters.md)."
    )
