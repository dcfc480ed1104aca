"""The command that converts a .pth file. Torch itself is no dependency: a stand-in plays it."""

import pathlib
import pickle
import sys
import types

import numpy as np
import pytest

from blossom_jax.torch_import import load_model
from experiments import _cli, import_torch

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "model_two_layer_50.npz"


class Tensor:
    """As much of a torch tensor as the command uses."""

    def __init__(self, value):
        self.value = value

    def to(self, dtype):
        return Tensor(self.value.astype(dtype))

    def numpy(self):
        return self.value


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on what torch.load returns or raises; gives exit code, stdout, stderr."""

    def run(content, *flags):
        def load(path, *, map_location, weights_only):
            assert weights_only and map_location == "cpu"
            if isinstance(content, Exception):
                raise content
            return content

        def is_tensor(value):
            return isinstance(value, Tensor)

        torch = types.SimpleNamespace(load=load, is_tensor=is_tensor, float32=np.float32)
        monkeypatch.setitem(sys.modules, "torch", torch)
        checkpoint = tmp_path / "model.pth"
        checkpoint.touch()
        argv = [f"--checkpoint={checkpoint}", f"--output={tmp_path / 'out'}", *flags]
        with pytest.raises(SystemExit) as stop, _cli.errors_to_exit_code():
            sys.exit(import_torch.main(argv))
        return stop.value.code or 0, *capsys.readouterr()

    return run


def tensors(**changes):
    with np.load(GOLDEN) as file:
        arrays = {name.removeprefix("param/"): file[name] for name in file if "param/" in name}
    return {name: Tensor(value) for name, value in (arrays | changes).items()}


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": x, "epoch": 3}])
def test_converts(run, tmp_path, wrap):
    code, out, _ = run(wrap(tensors()), "--num-heads=4")
    assert code == 0
    assert "59 items" in out and "num_heads 4, num_kv_heads 2" in out
    model = load_model(tmp_path / "out")
    assert (model.num_items, model.config.num_layers, model.config.inner_size) == (59, 2, 48)
    np.testing.assert_array_equal(
        model.layers[1].dense.kernel[...],
        tensors()["trm_encoder.layer.1.blossom_attention.dense.weight"].value.T.astype(np.float32),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.UnpicklingError("a\nlong text"), "as weights alone (UnpicklingError)"),
        (EOFError(), "as weights alone (EOFError)"),
        (tensors(extra=np.zeros(1)), "unknown extra"),
        ([1, 2], "holds no state dict"),
        ({"state_dict": {"a": 1}}, "holds no state dict"),
        (tensors(), "to_qkv.weight is (64, 32), not (48, 32)"),  # of 8 heads, the default
    ],
)
def test_refuses_in_one_line(run, tmp_path, content, message):
    code, _, err = run(content)
    assert code == 2
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_torch_or_file_is_said(tmp_path, monkeypatch, capsys):
    argv = [f"--checkpoint={tmp_path / 'none.pth'}", f"--output={tmp_path / 'out'}"]
    for torch, message in [(None, "pip install torch"), (types.SimpleNamespace(), "no such file")]:
        monkeypatch.setitem(sys.modules, "torch", torch)
        with pytest.raises(SystemExit) as stop, _cli.errors_to_exit_code():
            import_torch.main(argv)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
