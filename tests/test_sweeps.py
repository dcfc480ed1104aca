"""Every sweep file: rows that the config knows, whose sizes fit together, and its command."""

import importlib
import inspect
import pathlib

import pytest

from blossom_jax.config import ModelConfig
from configs import common, sweeps
from experiments import _cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in pathlib.Path(sweeps.__file__).parent.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_rows_fit_the_config(name):
    module = importlib.import_module(f"configs.sweeps.{name}")
    assert f"--sweep=configs/sweeps/{name}.py" in inspect.getdoc(module)
    sweep = module.get_sweep()
    assert sweep["reference"] in sweep["rows"]
    known = _cli.flatten(common.get_config())
    for changes in sweep["rows"].values():
        assert set(changes) <= set(known)
        config = _cli.load_config(str(ROOT / "configs" / "ml_1m.py"))
        for key, value in changes.items():
            assert type(value) is type(known[key]), key
            _cli.override(config, key, str(value))
        ModelConfig(**config.model)
        assert config.data.row_length >= config.model.max_length


@pytest.mark.parametrize("name", ["selectors", "selectors_sparse"])
def test_dense_attention_is_cut_where_selection_sees_everything(name):
    rows = importlib.import_module(f"configs.sweeps.{name}").get_sweep()["rows"]
    config = common.get_config()
    for key, value in rows["learned"].items():
        _cli.override(config, key, str(value))
    seen = config.model.selection_block_size * (config.model.num_selected_blocks + 1)
    assert rows["dense_cut"]["model.max_length"] == seen
