"""Brings weights trained with the authors' PyTorch code (arXiv 2512.13368) into our modules."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from blossom_jax.attention import BlossomAttention
from blossom_jax.config import ModelConfig
from blossom_jax.errors import UserError
from blossom_jax.model import BlossomRec

_ANY_LENGTH = np.iinfo(np.int32).max  # imported weights promise no longest history

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


def attention_from_state_dict(
    state_dict: Mapping[str, np.ndarray],
    *,
    num_heads: int,
    num_kv_heads: int,
    compress_block_size: int,
    compress_stride: int,
    selection_block_size: int,
    num_selected_blocks: int,
    window: int = 8,
    causal: bool = True,
) -> BlossomAttention:
    """Builds an attention module with the weights of the authors' sparse attention.

    Args:
      state_dict: The authors' parameter names and values.
      num_heads: H, query heads.
      num_kv_heads: G, key/value heads.
      compress_block_size: l, tokens in a compression window.
      compress_stride: s, tokens between two windows.
      selection_block_size: S, tokens in a block.
      num_selected_blocks: N, blocks that a query selects.
      window: W, most recent tokens on the short-term path.
      causal: Whether a token sees only its past.

    Returns:
      A module called as `attention(x [B, L, M], positions int32[B, L]) -> [B, L, M]`.

    Raises:
      UserError: Names that are missing or unknown, or shapes that do not fit the sizes.
    """
    paths = attention_paths()
    state_dict = _used(state_dict, paths)
    config = ModelConfig(
        hidden_size=_size(state_dict, "to_qkv.weight", 1),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        compress_block_size=compress_block_size,
        compress_stride=compress_stride,
        selection_block_size=selection_block_size,
        num_selected_blocks=num_selected_blocks,
        window=window,
        max_length=_ANY_LENGTH,
        causal=causal,
    )
    attention = BlossomAttention(config, rngs=nnx.Rngs(0))
    _set_parameters(attention, state_dict, paths)
    return attention


def model_from_state_dict(
    state_dict: Mapping[str, np.ndarray],
    *,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    compress_block_size: int,
    compress_stride: int,
    selection_block_size: int,
    num_selected_blocks: int,
    window: int = 8,
) -> BlossomRec:
    """Builds a model with the weights of the authors' full model.

    Args:
      state_dict: The authors' parameter names and values.
      num_layers: Transformer blocks.
      num_heads: H, query heads.
      num_kv_heads: G, key/value heads.
      compress_block_size: l, tokens in a compression window.
      compress_stride: s, tokens between two windows.
      selection_block_size: S, tokens in a block.
      num_selected_blocks: N, blocks that a query selects.
      window: W, most recent tokens on the short-term path.

    Returns:
      A module called as `model(item_ids int32[B, L], positions int32[B, L]) -> hidden [B, L, M]`;
      `model.scores(hidden)` is [..., num_items + 1].

    Raises:
      UserError: Names that are missing or unknown, or shapes that do not fit the sizes.
    """
    paths = model_paths(num_layers)
    state_dict = _used(state_dict, paths)
    config = ModelConfig(
        hidden_size=_size(state_dict, "item_embedding.weight", 1),
        inner_size=_size(state_dict, "trm_encoder.layer.0.feed_forward.dense_1.weight", 0),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        compress_block_size=compress_block_size,
        compress_stride=compress_stride,
        selection_block_size=selection_block_size,
        num_selected_blocks=num_selected_blocks,
        window=window,
        max_length=_ANY_LENGTH,
    )
    num_items = _size(state_dict, "item_embedding.weight", 0) - 1
    model = BlossomRec(config, num_items, rngs=nnx.Rngs(0))
    _set_parameters(model, state_dict, paths)
    return model


def save_model(model: BlossomRec, directory: pathlib.Path) -> None:
    """Writes `config.json` and the Orbax checkpoint `params` into a new folder.

    Args:
      model: Any model of ours.
      directory: Is created; must not hold a model yet.

    Raises:
      UserError: There is something at `directory` already.
    """
    directory = pathlib.Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not an empty folder: name a new one")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "params", nnx.state(model, nnx.Param))
    description = {"num_items": model.num_items, "model": dataclasses.asdict(model.config)}
    (directory / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def load_model(directory: pathlib.Path) -> BlossomRec:
    """Reads a model that `save_model` wrote."""
    directory = pathlib.Path(directory).absolute()
    description = json.loads((directory / "config.json").read_text())
    config = ModelConfig(**description["model"])
    model = BlossomRec(config, description["num_items"], rngs=nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(model, checkpointer.restore(directory / "params", nnx.state(model, nnx.Param)))
    return model


def _used(state_dict, paths) -> dict[str, np.ndarray]:
    """Drops the authors' unused parameters, and checks that those left are the ones we need."""
    used = {name: value for name, value in state_dict.items() if not _UNUSED.search(name)}
    missing = [name for name in paths if name not in used]
    unknown = [name for name in used if name not in paths]
    if missing or unknown:
        lists = {"missing": missing, "unknown": unknown}
        raise UserError(
            "the state dict does not hold the parameters of this model: "
            + "; ".join(f"{what} {', '.join(names)}" for what, names in lists.items() if names)
        )
    return used


def _size(state_dict, name: str, axis: int) -> int:
    shape = np.shape(state_dict[name])
    if len(shape) != 2:
        raise UserError(f"{name} must be a matrix, its shape is {shape}")
    return shape[axis]


def _set_parameters(module: nnx.Module, state_dict, paths) -> None:
    """Writes every value into its place, all or nothing."""
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
