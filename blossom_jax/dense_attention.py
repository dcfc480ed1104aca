"""Dense attention, which BlossomRec is compared with: XLA's, or cuDNN's for rows not packed."""

import functools
import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blossom_jax.attention import Attention, split_heads
from blossom_jax.config import ModelConfig
from pallas_kernels.positions import sequence_start


class DenseAttention(Attention):
    """Attention to every earlier token of the sequence: what BlossomRec is compared with."""

    def mix(self, x, qkv, positions, *, packed=True):
        """Attends inside each sequence.

        Raises:
          NotImplementedError: cuDNN was asked for by name and the rows are packed.
        """
        q, k, v = split_heads(qkv, positions, self.config)
        return self.attend(q, k, v, positions, packed=packed).reshape(x.shape)

    def attend(
        self,
        q: Float[Array, "B L H D"],
        k: Float[Array, "B L G D"],
        v: Float[Array, "B L G D"],
        positions: Int[Array, "B L"],
        *,
        packed: bool,
    ) -> Float[Array, "B L H D"]:
        """Attends to every token of the own sequence, or to those before; zero at padding."""
        real = positions >= 0
        if self.implementation(packed=packed) == "cudnn":
            length = jnp.maximum(real.sum(-1, dtype=jnp.int32), 1)  # softmax needs one key
            masking = {
                "implementation": "cudnn",
                "is_causal": self.config.causal,
                "query_seq_lengths": length,
                "key_value_seq_lengths": length,
            }
        else:
            masking = {
                "implementation": "xla",
                "mask": segment_mask(positions, self.config.causal),
            }
        with jax.default_matmul_precision(self.config.precision.name.lower()):
            attended = jax.nn.dot_product_attention(q, k, v, **masking)
        return jnp.where(real[:, :, None, None], attended, 0)

    def implementation(self, *, packed: bool) -> str:
        """Says what serves a call here: "cudnn" or "xla"; the log says it too, once.

        Args:
          packed: As in the call.
        """
        chosen = implementation(self.config, packed=packed)
        _log_once("dense attention runs on %s, packed=%s", chosen, packed)
        return chosen


def implementation(config: ModelConfig, *, packed: bool) -> str:
    """Says what serves dense attention here: "cudnn" or "xla".

    Args:
      config: Sizes, dtype, and the implementation if one is named.
      packed: Whether a row may hold several sequences.

    Raises:
      NotImplementedError: cuDNN was asked for by name and the rows are packed.
    """
    named = config.implementation if config.attention == "dense" else ""
    if named == "cudnn" and packed:
        raise NotImplementedError("cuDNN has no segment mask: it cannot serve packed=True")
    return named or ("cudnn" if not packed and _cudnn_runs(config) else "xla")


def segment_mask(positions: Int[Array, "B L"], causal: bool) -> Bool[Array, "B 1 L L"]:
    """Tells which key (last axis) stands in the query's own sequence, and not after it."""
    start = sequence_start(positions)
    mask = (start[:, :, None] == start[:, None]) & (positions >= 0)[:, None]
    return (jnp.tril(mask) if causal else mask)[:, None]


def _cudnn_runs(config: ModelConfig) -> bool:
    """Tells whether cuDNN's attention serves these sizes on the first local device."""
    device = jax.local_devices()[0]
    sizes_fit = config.dtype == "bfloat16" and config.head_size % 8 == 0 and config.head_size <= 128
    return device.platform == "gpu" and float(device.compute_capability) >= 8.0 and sizes_fit


@functools.cache
def _log_once(message: str, *arguments) -> None:
    logging.getLogger(__name__).info(message, *arguments)
