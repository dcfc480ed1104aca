"""What the authors' PyTorch code (arXiv 2512.13368) calls each parameter; how it lays it out."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from blossom_jax.errors import UserError

# The authors' code registers these and never uses them; RoPE's frequencies are constants.
_UNUSED = re.compile(
    r"(^|\.)(v_compress\..*|compress_mem_kv|v_intrablock_positions|rotary_emb\.freqs)$"
)

_ATTENTION = {
    "to_qkv.weight": ("qkv", "kernel"),
    "to_strategy_combine.0.weight": ("gate", "kernel"),
    "to_strategy_combine.0.bias": ("gate", "bias"),
    "combine_heads.weight": ("out", "kernel"),
    "k_intrablock_positions": ("compressor", "intra_block_positions"),
    "k_compress.1.weight": ("compressor", "hidden", "kernel"),
    "k_compress.1.bias": ("compressor", "hidden", "bias"),
    "k_compress.3.weight": ("compressor", "out", "kernel"),
    "k_compress.3.bias": ("compressor", "out", "bias"),
}
_LAYER = {
    **{
        f"blossom_attention.sparse_attention.{name}": ("attention", *path)
        for name, path in _ATTENTION.items()
    },
    "blossom_attention.dense.weight": ("dense", "kernel"),
    "blossom_attention.dense.bias": ("dense", "bias"),
    "blossom_attention.LayerNorm.weight": ("attention_norm", "scale"),
    "blossom_attention.LayerNorm.bias": ("attention_norm", "bias"),
    "feed_forward.dense_1.weight": ("feed_forward", "dense_1", "kernel"),
    "feed_forward.dense_1.bias": ("feed_forward", "dense_1", "bias"),
    "feed_forward.dense_2.weight": ("feed_forward", "dense_2", "kernel"),
    "feed_forward.dense_2.bias": ("feed_forward", "dense_2", "bias"),
    "feed_forward.LayerNorm.weight": ("feed_forward_norm", "scale"),
    "feed_forward.LayerNorm.bias": ("feed_forward_norm", "bias"),
}


def attention_paths() -> dict[str, tuple]:
    """Returns {the authors' name: path in `BlossomAttention`} of every attention parameter."""
    return dict(_ATTENTION)


def model_paths(num_layers: int) -> dict[str, tuple]:
    """Returns {the authors' name: path in `BlossomRec`} of every parameter of their full model."""
    around = {
        "item_embedding.weight": ("item_embedding", "embedding"),
        "LayerNorm.weight": ("embedding_norm", "scale"),
        "LayerNorm.bias": ("embedding_norm", "bias"),
    }
    layers = {
        f"trm_encoder.layer.{n}.{name}": ("layers", n, *path)
        for n in range(num_layers)
        for name, path in _LAYER.items()
    }
    return around | layers


def used(state_dict: Mapping[str, np.ndarray], paths: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    """Drops the authors' unused parameters.

    Args:
      state_dict: The authors' parameter names and values.
      paths: From `attention_paths` or `model_paths`.

    Raises:
      UserError: Those left are not the ones that we need.
    """
    found = {name: value for name, value in state_dict.items() if not _UNUSED.search(name)}
    missing = [name for name in paths if name not in found]
    unknown = [name for name in found if name not in paths]
    if missing or unknown:
        lists = {"missing": missing, "unknown": unknown}
        raise UserError(
            "the state dict does not hold the parameters of this model: "
            + "; ".join(f"{what} {', '.join(names)}" for what, names in lists.items() if names)
        )
    return found


def matrix_size(state_dict: Mapping[str, np.ndarray], name: str, axis: int) -> int:
    """Returns one size of a parameter.

    Raises:
      UserError: It is no matrix.
    """
    shape = np.shape(state_dict[name])
    if len(shape) != 2:
        raise UserError(f"{name} must be a matrix, its shape is {shape}")
    return shape[axis]


def set_parameters(
    module: nnx.Module, state_dict: Mapping[str, np.ndarray], paths: Mapping[str, tuple]
) -> None:
    """Writes every value into its place, all or nothing.

    Args:
      module: Its parameters are set.
      state_dict: From `used`.
      paths: As for `used`.

    Raises:
      UserError: Shapes that do not fit the module's.
    """
    variables = {name: _variable(module, path) for name, path in paths.items()}
    values = {
        name: _in_our_layout(state_dict[name], path[-1], variables[name].shape)
        for name, path in paths.items()
    }
    wrong = [
        f"{name} is {np.shape(state_dict[name])}, not {_their_shape(variables[name], path[-1])}"
        for name, path in paths.items()
        if values[name].shape != variables[name].shape
    ]
    if wrong:
        raise UserError(f"shapes do not fit the sizes given: {'; '.join(wrong)}")
    for name, variable in variables.items():
        variable.set_value(jnp.asarray(values[name], variable.dtype))


def _variable(module, path):
    for key in path:
        module = module[key] if isinstance(key, int) else getattr(module, key)
    return module


def _in_our_layout(value, kind: str, shape) -> np.ndarray:
    """Transposes what PyTorch keeps as [out, in]; adds the surplus rows of our item table."""
    value = np.asarray(value)
    if kind == "embedding":
        return np.pad(value, ((0, shape[0] - value.shape[0]), (0, 0)))
    return value.T if kind == "kernel" else value


def _their_shape(variable, kind: str) -> tuple:
    return variable.shape[::-1] if kind == "kernel" else variable.shape
