"""Converts a checkpoint of the authors' PyTorch code into a model of ours.

python -m experiments.import_torch --checkpoint=BlossomRec.pth --output=DIR

DIR gets config.json and params (Orbax), which `blossom_jax.torch_import.load_model` reads. The
file may hold the state dict itself, or a dict with it under "state_dict"; it is read as weights
only, so code inside it is never run. Needs torch: pip install torch.

Sizes that weights do not tell are flags; their defaults are the authors' released values.
"""

import argparse
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from blossom_jax import torch_import
from blossom_jax.errors import UserError
from blossom_jax.model import num_params
from experiments import _cli

RELEASED = {
    "num_heads": 8,
    "num_kv_heads": 2,
    "compress_block_size": 32,
    "compress_stride": 16,
    "selection_block_size": 16,
    "num_selected_blocks": 4,
    "window": 8,
}


def main(argv: Sequence[str]) -> None:
    """Reads the checkpoint, builds the model and writes it."""
    arguments = parse_arguments(argv)
    state_dict = read_state_dict(arguments.checkpoint)
    sizes = {name: getattr(arguments, name) for name in RELEASED}
    model = torch_import.model_from_state_dict(
        state_dict, num_layers=count_layers(state_dict), **sizes
    )
    torch_import.save_model(model, arguments.output)
    print(f"{arguments.output}: {model.num_items:,} items, {num_params(model):,} parameters")
    print("sizes taken:", ", ".join(f"{name} {value}" for name, value in sizes.items()))


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = _cli.ArgumentParser(prog="experiments.import_torch", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="FILE.pth", type=pathlib.Path)
    parser.add_argument("--output", required=True, metavar="DIR", type=pathlib.Path)
    for name, default in RELEASED.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=default, help=f"default {default}")
    return parser.parse_args(argv)


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a .pth file's weights as NumPy arrays.

    Raises:
      UserError: No torch, no such file, or a file that holds anything but weights.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "reading a .pth file needs PyTorch, which is not installed: pip install torch"
        ) from error
    if not path.is_file():
        raise UserError(f"--checkpoint={path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets through whatever a file that is no checkpoint causes
        raise UserError(
            f"--checkpoint={path} cannot be read as weights alone ({type(error).__name__}); if it "
            "holds more and you trust it, save the state dict by itself: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise UserError(f"--checkpoint={path} holds no state dict")
    return {name: value.to(torch.float32).numpy() for name, value in content.items()}


def count_layers(state_dict: Mapping[str, np.ndarray]) -> int:
    """Counts the encoder layers by their names, at least 1."""
    numbers = (re.match(r"trm_encoder\.layer\.(\d+)\.", name) for name in state_dict)
    return 1 + max((int(number[1]) for number in numbers if number), default=0)


if __name__ == "__main__":
    _cli.run(main)
