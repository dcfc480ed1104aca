"""Every config file: loads, is locked, has the keys of common and a docstring with its command."""

import importlib
import inspect
import pathlib

import pytest

from blossom_jax.config import ModelConfig
from blossom_jax.errors import UserError
from configs import common
from configs.models import MODELS
from experiments import _cli

FILES = sorted(
    path
    for path in pathlib.Path(common.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "common", "models")
)
NAMES = [path.stem for path in FILES]


def test_every_data_set_has_its_config():
    assert set(NAMES) == {
        *("amazon_beauty", "amazon_video_games", "custom", "gowalla", "gowalla_1000"),
        *("gowalla_nyc", "interests", "long_interest", "ml_100k", "ml_1m", "ml_20m"),
        *("quickstart", "synthetic", "yelp"),
    }


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_loads_locked_with_the_keys_and_types_of_common(path):
    config = _cli.load_config(str(path))
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.model.no_such_key = 1
    defaults, values = _cli.flatten(common.get_config()), _cli.flatten(config)
    assert {k: type(v) for k, v in values.items()} == {k: type(v) for k, v in defaults.items()}
    assert config.data.name
    assert config.data.row_length >= config.model.max_length


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_its_docstring_has_the_command(path):
    documentation = inspect.getdoc(importlib.import_module(f"configs.{path.stem}"))
    assert f"python -m experiments.train --config=configs/{path.name} " in documentation


@pytest.mark.parametrize("name", MODELS)
def test_every_model_by_name_is_a_model(name):
    arguments = [f"--config={FILES[0]}", f"--model={name}", "--config.model.num_layers=3"]
    config = _cli.parse_with_config(_cli.ArgumentParser(), arguments).config
    assert ModelConfig(**config.model).num_layers == 3
    values = _cli.flatten(config)
    assert {key: values[key] for key in MODELS[name]} == MODELS[name]


def test_an_unknown_model_is_refused_with_those_known():
    with pytest.raises(UserError, match="invalid choice: 'bert' .*bert4rec"):
        _cli.parse_with_config(_cli.ArgumentParser(), [f"--config={FILES[0]}", "--model=bert"])


def test_every_value_of_common_can_be_overridden():
    config = common.get_config().lock()
    for key, value in _cli.flatten(config).items():
        _cli.override(config, key, str(value))
        assert _cli.flatten(config)[key] == value
