"""What mixes the tokens of a sequence, by the name that `config.attention` gives it."""

from collections.abc import Callable

from flax import nnx

from blossom_jax.attention import Attention, BlossomAttention
from blossom_jax.baselines.dense_gated import DenseGatedAttention
from blossom_jax.baselines.gru import GRU
from blossom_jax.baselines.hstu import SiluAttention
from blossom_jax.baselines.linear_attention import LinearAttention
from blossom_jax.baselines.mamba import Mamba
from blossom_jax.config import ModelConfig
from blossom_jax.dense_attention import DenseAttention

_MIXERS: dict[str, Callable[..., Attention | GRU | Mamba]] = {
    "blossom": BlossomAttention,
    "ltis": BlossomAttention,
    "stis": BlossomAttention,
    "dense": DenseAttention,
    "dense_gated": DenseGatedAttention,
    "linear": LinearAttention,
    "silu": SiluAttention,
    "gru": GRU,
    "mamba": Mamba,
}


def make_mixer(config: ModelConfig, *, rngs: nnx.Rngs) -> Attention | GRU | Mamba:
    """Builds what `config.attention` names.

    All are called as `Attention`, with activations and positions, and keep the tokens of one
    sequence from those of another.
    """
    return _MIXERS[config.attention](config, rngs=rngs)
