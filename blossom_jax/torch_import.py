"""Brings weights trained with the authors' PyTorch code (arXiv 2512.13368) into our modules."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from blossom_jax.attention import BlossomAttention
from blossom_jax.config import ModelConfig
from blossom_jax.errors import UserError
from blossom_jax.model import BlossomRec
from blossom_jax.torch_names import (
    attention_paths,
    matrix_size,
    model_paths,
    set_parameters,
    used,
)

_ANY_LENGTH = np.iinfo(np.int32).max  # imported weights promise no longest history


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
    state_dict = used(state_dict, paths)
    config = ModelConfig(
        hidden_size=matrix_size(state_dict, "to_qkv.weight", 1),
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
    set_parameters(attention, state_dict, paths)
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
    state_dict = used(state_dict, paths)
    config = ModelConfig(
        hidden_size=matrix_size(state_dict, "item_embedding.weight", 1),
        inner_size=matrix_size(state_dict, "trm_encoder.layer.0.feed_forward.dense_1.weight", 0),
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
    num_items = matrix_size(state_dict, "item_embedding.weight", 0) - 1
    model = BlossomRec(config, num_items, rngs=nnx.Rngs(0))
    set_parameters(model, state_dict, paths)
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
