"""What the training command refuses, each by one line, and what it hints at."""

from unittest import mock

import jax
import pytest
from tiny_training import ROOT, flags

from blossom_jax.config import ModelConfig
from blossom_jax.errors import MissingFileError, UserError
from experiments import _setup, _workdir, evaluate, train

LAZY = {"train__item_optimizer": "lazy"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__batch_rows": 6}, "batch not divisible by devices: train.batch_rows=6 over 8"),
        ({"mesh__data": 3}, "mesh of data=3 x model=1 does not fit 8"),
        ({"model__hidden_size": 1_600_000}, r"needs [\d,]{16,} bytes, more than the [\d,]+ of"),
        ({"data__row_length": 10**9}, r"needs [\d,]{13,} bytes, more than the [\d,]+ of"),
        ({"train__batch_rows": 8 * 10**9}, r"needs [\d,]{13,} bytes, more than the [\d,]+ of"),
        ({"train__batch_rows": 8 * 2**19}, "elements for each activation: train.batch_rows x data"),
        ({"model__window": 10**11}, r"model.window must be below 2\*\*31, got 100000000000"),
        (
            {"train__learning_rate": "inf"},
            "train.learning_rate must be finite and not neg.*, got inf",
        ),
        ({"model__num_heads": 5}, "num_heads"),
        ({"eval__metric": "full/ndcg@11"}, "did you mean full/ndcg@1"),
        ({"eval__ks": "0,10"}, "eval.ks"),
        ({"eval__ks": "1.5,10"}, "eval.ks must be whole numbers"),
        ({"eval__ks": "()"}, "eval.ks"),
        ({"eval__negatives_seed": -1}, "eval.negatives_seed must not be negative: -1"),
        ({"model__causal": False}, "train.target must be 'last'"),
        (
            {"model__objective": "masked", "model__causal": False, "model__max_length": 1},
            "appends a mask to a history: model.max_length must be at least 2, got 1",
        ),
        ({"train__target": "masked"}, "train.target must be 'all' or 'last', got 'masked'"),
        ({"train__mask_probability": 0.0}, "train.mask_probability must lie between 0 and 1"),
        (
            {"model__objective": "masked", "model__causal": False, "train__target": "last"},
            "train.target='last' is for model.objective='next'",
        ),
        ({"eval__num_negatives": 0}, "eval.num_negatives"),
        ({"eval__batch_users": 12}, "eval.batch_users=12"),
        ({"eval__batch_users": 8 * 10**9}, r"evaluation needs [\d,]{13,} bytes.*eval.batch_users"),
        ({"train__loss_chunk": -1}, "train.loss_chunk must be at least 0"),
        ({"train__loss": "hinge"}, "train.loss must be one of"),
        (
            {"train__loss": "gbce", "train__num_negatives": 10**6},
            "must be below the .* items of th",
        ),
        ({"train__item_optimizer": "sgd"}, "must be 'dense' or 'lazy', got 'sgd'"),
        (LAZY | {"train__loss": "cross_entropy"}, "loss=cross_entropy reads all: choose a loss by"),
        (LAZY | {"train__shared_negatives": False}, "train.shared_negatives=false reads"),
        (LAZY | {"train__accumulate_steps": 2}, "train.accumulate_steps=2 makes one update of"),
        (LAZY | {"mesh__model": 2}, "mesh.model=2 splits them over devices: set it to 1, or leave"),
        ({"model__remat": "all"}, "model.remat must be one of 'none', 'block', got 'all'"),
        ({"train__schedule": "linear"}, "train.schedule must be .* got 'linear'"),
        ({"data__split": "random"}, "data.split must be"),
        ({"data__split": "global_time"}, "has no times"),
        ({"data__path": "nowhere"}, "nowhere"),
        ({"data__path": "", "data__name": "ml_10m"}, "unknown data set 'ml_10m'"),
        ({"data__path": "", "data__min_user_events": 99}, "data.path"),
        ({"seed": -1}, "seed must lie in"),
        ({"train__patience": -1}, "train.patience must not be negative, got -1"),
        ({"checkpoint__every_steps": -1}, "checkpoint.every_steps must not be negative"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(log, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train.main(flags(log, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_what_evaluation_needs_is_known_to_the_byte_before_training(log, tmp_path, monkeypatch):
    monkeypatch.setattr("blossom_jax.memory.available_bytes", lambda devices: 100_000_000)
    with pytest.raises(UserError, match=r"evaluation needs [\d,]{11,} bytes, more than the 100,"):
        train.main(flags(log, tmp_path / "run", eval__batch_users=8 * 20_000))
    assert not (tmp_path / "run").exists()


def test_where_ml_100k_cannot_be_had_the_quickstart_names_the_synthetic_config(
    tmp_path, monkeypatch
):
    def refuse(*_):
        raise MissingFileError("ml-100k.inter is not here")

    monkeypatch.setattr("blossom_jax.data.load.find_or_download", refuse)
    config = f"--config={ROOT}/configs/quickstart.py"
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    with pytest.raises(UserError, match=r"ml-100k.inter is not here; .*configs/synthetic\.py"):
        train.main([config, cache, f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_other_errors_in_data_do_not_name_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BLOSSOM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere is not a folder$"):
        train.main([f"--config={ROOT}/configs/quickstart.py", f"--workdir={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("attention", "said"), [("dense", " (attention by xla)"), ("blossom", ""), ("gru", "")]
)
def test_a_run_says_what_serves_dense_attention(attention, said):
    assert train._setup.served_by(ModelConfig(attention=attention, positions="none")) == said


def test_a_missing_flag_is_named(tmp_path):
    with pytest.raises(UserError, match="--workdir, --config"):
        train.main([])
    with pytest.raises(UserError, match="argument --workdir: it names no folder"):
        train.main(["--workdir="])


@pytest.mark.parametrize("content", ["{", "[]", '{"seed": 0}'])
def test_a_damaged_config_of_a_run_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json is damaged"):
        _workdir.read_config(tmp_path)


def test_a_folder_without_a_run_cannot_be_evaluated(tmp_path):
    with pytest.raises(UserError, match="holds no run: .*config.json cannot be read: No such file"):
        evaluate.main([f"--workdir={tmp_path}"])


def test_a_workdir_must_be_a_folder(log, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; the workdir must be a folder"):
        train.main(flags(log, tmp_path / "file"))
    with pytest.raises(UserError, match="file/run cannot be made: Not a directory"):
        train.main(flags(log, tmp_path / "file" / "run"))


@pytest.mark.parametrize(
    ("dtype", "capability", "hints"),
    [("float32", "9.0", True), ("bfloat16", "9.0", False), ("float32", "7.5", False)],
)
def test_a_gpu_that_would_be_faster_in_bf16_is_told_so(dtype, capability, hints):
    device = mock.Mock(compute_capability=capability)
    assert ("model.dtype=bfloat16" in _setup.dtype_hint(dtype, device)) == hints
    assert not _setup.dtype_hint("float32", jax.devices("cpu")[0])
