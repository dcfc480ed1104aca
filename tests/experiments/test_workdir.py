"""The files of a run's folder."""

import json

import pytest

from blossom_jax.errors import UserError
from configs import common
from experiments import _workdir


def test_a_run_from_before_a_value_existed_has_its_default(tmp_path):
    config = common.get_config().lock()
    _workdir.write_config(tmp_path, config)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["model"]["rope_theta"]
    del values["train"]["stop_at"], values["train"]["loss_implementation"]
    path.write_text(json.dumps(values))

    _workdir.check_config(tmp_path, config)
    assert _workdir.read_config(tmp_path).to_dict() == config.to_dict()


def test_data_and_cache_may_be_moved(tmp_path):
    config = common.get_config()
    _workdir.write_config(tmp_path, config)
    config.data.path, config.data.cache_dir = "elsewhere", "there"
    _workdir.check_config(tmp_path, config)


def test_checkpoints_without_a_config_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has checkpoints but no config.json: take another"):
        _workdir.check_config(tmp_path, common.get_config())


def test_another_config_is_refused_with_what_differs(tmp_path):
    config = common.get_config()
    _workdir.write_config(tmp_path, config)
    config.model.rope_theta = 1e6
    with pytest.raises(UserError, match="model.rope_theta is 10000.0 there and 1000000.0 here"):
        _workdir.check_config(tmp_path, config)
