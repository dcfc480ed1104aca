"""The whole model: sizes, initial values, dropout, packing; and the config's refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax.config import ATTENTIONS, RECURRENT
from blossom_jax.errors import UserError
from blossom_jax.model import BlossomRec, ModelConfig, num_params

SMALL = {
    "hidden_size": 16,
    "inner_size": 24,
    "num_heads": 4,
    "compress_block_size": 4,
    "compress_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 1,
    "window": 2,
    "max_length": 16,
}
NUM_ITEMS = 130


def make(**changes):
    return BlossomRec(ModelConfig(**SMALL | changes), NUM_ITEMS, rngs=nnx.Rngs(0))


def inputs():
    positions = np.array([[*range(9), *range(3), -1], [*range(12), -1]], np.int32)
    item_ids = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, positions.shape)
    return jnp.asarray(np.where(positions < 0, 0, item_ids), jnp.int32), jnp.asarray(positions)


@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name not in RECURRENT])
def test_num_params(attention):
    m, i, v, d, heads, kv = 16, 24, NUM_ITEMS, 4, 4, 2
    qkv_and_out = m * (heads + 2 * kv) * d + m * m
    gate = m * heads * 2 + heads * 2
    window = SMALL["compress_block_size"] * d
    compressor = kv * window + window * (window + 1) + (window + 1) * d
    own = {"blossom": gate + compressor, "ltis": compressor, "dense_gated": gate}
    own |= {"silu": 2 * SMALL["max_length"] - 1}
    around = m * (m + 1) + i * (m + 1) + m * (i + 1) + 4 * m
    want = (v + 1) * m + 2 * m + 2 * (qkv_and_out + own.get(attention, 0) + around)
    assert num_params(make(attention=attention)) == want


def test_all_state_is_parameters_and_initial_values_are_the_papers():
    model = make()
    assert not nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Param)))
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        value = np.asarray(variable[...])
        assert value.dtype == np.float32
        if path[-1] in ("kernel", "embedding"):
            assert abs(value.std() / 0.02 - 1) < 0.25, path
        else:
            assert (value == (path[-1] == "scale")).all(), path


def test_blocks_computed_anew_have_the_same_gradients():
    def gradients(remat):
        model = make(attention="dense", num_layers=1, remat=remat)
        graphdef, params = nnx.split(model, nnx.Param)

        def total(params):
            hidden = nnx.merge(graphdef, params)(*inputs(), dropout_key=jax.random.key(0))
            return jnp.sum(jnp.sin(hidden))

        times = str(jax.make_jaxpr(jax.grad(total))(params)).count("remat")
        return times, jax.tree.leaves(jax.jit(jax.grad(total))(params))

    (times_kept, kept), (times_anew, anew) = gradients("none"), gradients("block")
    assert times_kept < times_anew  # the activation is computed anew in any case
    for x, y in zip(kept, anew, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)


def test_the_twin_differs_in_attention_alone():
    def outside(model):
        paths = (path for path, _ in nnx.to_flat_state(nnx.state(model)))
        return {path for path in paths if "attention" not in path}

    assert outside(make()) == outside(make(attention="dense"))


def test_the_table_is_padded_and_scores_are_not():
    model = make()
    assert model.item_embedding.embedding.shape == (256, 16)
    hidden = jax.random.normal(jax.random.key(0), (3, 16))
    table = np.asarray(model.item_embedding.embedding[...])
    scores = model.scores(hidden.astype(jnp.bfloat16))
    assert scores.shape == (3, NUM_ITEMS + 1) and scores.dtype == jnp.float32
    rounded = np.asarray(hidden.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(scores, rounded @ table[: NUM_ITEMS + 1].T, atol=1e-6)


def test_surplus_rows_get_no_gradient():
    graphdef, params = nnx.split(make(attention="dense"))

    @jax.jit
    @jax.grad
    def gradient(params):
        model = nnx.merge(graphdef, params)
        return jax.nn.logsumexp(model.scores(model(*inputs())), axis=-1).sum()

    grad = gradient(params).item_embedding.embedding[...]
    assert not grad[NUM_ITEMS + 1 :].any()
    assert grad[1 : NUM_ITEMS + 1].any(axis=1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_row_encodes_as_each_history_alone(dtype):
    model = make(dtype=dtype)
    item_ids, positions = inputs()
    packed = jax.jit(model)(item_ids, positions)
    assert packed.dtype == dtype
    alone = jax.jit(model)(item_ids[:1, 9:12], positions[:1, 9:12])
    atol = 1e-5 if dtype == "float32" else 5e-2
    np.testing.assert_allclose(
        packed[0, 9:12].astype(jnp.float32), alone[0].astype(jnp.float32), atol=atol
    )


def test_dropout_follows_its_key():
    model = make(attention="dense")
    encode = jax.jit(lambda key: model(*inputs(), dropout_key=key))
    first, again, other = (encode(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(encode(None), encode(None))
    still = make(attention="dense", dropout=0.0, embedding_dropout=0.0)
    np.testing.assert_array_equal(
        jax.jit(lambda: still(*inputs(), dropout_key=jax.random.key(0)))(), encode(None)
    )


def test_every_dropout_of_a_step_drops_differently(monkeypatch):
    model = make(attention="dense")
    keys = []

    def record(x, rate, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return x

    monkeypatch.setattr("blossom_jax.layers.dropout", record)
    model(*inputs(), dropout_key=jax.random.key(0))
    assert len(keys) == len(set(keys)) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention": "full"},
            "model.attention must be one of 'blossom', 'ltis', 'stis', 'dense'",
        ),
        ({"selection_gradient": "soft"}, "one of 'none', 'straight_through', got 'soft'"),
        ({"dtype": "float16"}, "model.dtype must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"implementation": "cudnn"}, "model.implementation must be one of '', 'reference'"),
        ({"block": "norm"}, "model.block must be one of 'post_norm', 'pre_norm', 'hstu', 'plain'"),
        ({"positions": "sine"}, "model.positions must be one of 'rope', 'learned', 'none'"),
        ({"objective": "cloze"}, "model.objective must be one of 'next', 'masked', got 'cloze'"),
        ({"attention": "gru"}, "model.attention='gru' has none: choose 'none' or 'learned'"),
        (
            {"attention": "mamba", "positions": "none", "block": "hstu"},
            "model.block='hstu' needs queries; model.attention='mamba' has none",
        ),
        (
            {"attention": "gru", "positions": "none", "causal": False},
            "model.attention='gru' reads forward alone: model.causal must be true",
        ),
        ({"objective": "masked"}, "both its sides: model.causal must be false"),
        ({"attention": "linear", "implementation": "triton"}, "one of '', 'xla', got 'triton'"),
        ({"attention": "dense", "implementation": "triton"}, "one of '', 'xla', 'cudnn'"),
        (
            {"hidden_size": 18},
            "model.hidden_size must be a multiple of model.num_heads, got 18 and 4",
        ),
        ({"num_kv_heads": 3}, "model.num_heads must be a multiple of model.num_kv_heads"),
        ({"hidden_size": 4}, "model.hidden_size / model.num_heads must be even, got 4 / 4"),
        ({"compress_stride": 3}, "model.selection_block_size must be a multiple of"),
        ({"compress_block_size": 1}, "model.compress_block_size 1 must not be below"),
        ({"num_selected_blocks": 0}, "model.num_selected_blocks must be at least 1, got 0"),
        ({"window": 0}, "model.window must be at least 1"),
        ({"max_length": -1}, "model.max_length must be at least 1, got -1"),
        ({"num_layers": 0}, "model.num_layers must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in [0, 1), got 1.0"),
        ({"embedding_dropout": -0.1}, r"model.embedding_dropout must lie in [0, 1)"),
        ({"rope_theta": 1.0}, "model.rope_theta must be above 1 and finite, got 1.0"),
        ({"layer_norm_epsilon": 0.0}, "model.layer_norm_epsilon must be positive"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(UserError) as error:
        ModelConfig(**SMALL | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
