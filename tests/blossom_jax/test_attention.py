"""The attention modules: padding, packing, parameters, and paths that must agree."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax import dense_attention
from blossom_jax.attention import rotate, split_heads
from blossom_jax.config import ATTENTIONS, RECURRENT, ModelConfig
from blossom_jax.dense_attention import DenseAttention
from blossom_jax.mixers import make_mixer

SIZES = {
    "hidden_size": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "compress_block_size": 4,
    "compress_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 1,
    "window": 2,
    "max_length": 32,
}
LENGTHS = (1, 14, 3, 6)


def make(name, seed=0, **changes):
    """Makes an attention whose parameters are all large enough to matter."""
    own = {"attention": name, "positions": "none" if name in RECURRENT else "rope"}
    module = make_mixer(ModelConfig(**SIZES | own | changes), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(seed)
    state = nnx.state(module, nnx.Param)
    nnx.update(
        module, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype), state)
    )
    return module


def packed_row(lengths=LENGTHS, padding=2):
    positions = np.concatenate([np.arange(n) for n in lengths] + [np.full(padding, -1)])
    x = np.random.default_rng(1).normal(size=(1, len(positions), SIZES["hidden_size"]))
    return jnp.asarray(x, jnp.float32), jnp.asarray(positions, jnp.int32)[None]


def parameter_names(module):
    return {path[0] for path, _ in nnx.to_flat_state(nnx.state(module))}


def copy_parameters(source, target):
    for name in parameter_names(source):
        nnx.update(getattr(target, name), nnx.state(getattr(source, name)))
    return target


@pytest.mark.parametrize("theta", [10000.0, 1e6])
def test_rotation_turns_interleaved_pairs(theta):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 6))
    positions = np.array([[0, 1, 2, 0, 1], [0, 1000, 2000, 4000, 9000]])
    angle = positions[:, :, None, None] * theta ** (-np.arange(0, 6, 2) / 6)
    want = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    got = np.asarray(rotate(jnp.asarray(x, jnp.float32), jnp.asarray(positions, jnp.int32), theta))
    np.testing.assert_allclose(got[..., 0::2] + 1j * got[..., 1::2], want, atol=2e-3)
    np.testing.assert_allclose(got[0, ..., 0::2] + 1j * got[0, ..., 1::2], want[0], atol=1e-6)


def test_heads_are_rotated_by_the_theta_of_the_config():
    config = ModelConfig(hidden_size=8, num_heads=1, num_kv_heads=1, rope_theta=1e6)
    qkv = jnp.ones((1, 2, 24))
    positions = jnp.array([[0, 100]])
    q, k, v = split_heads(qkv, positions, config)
    want = rotate(qkv[..., :8].reshape(1, 2, 1, 8), positions, 1e6)
    np.testing.assert_array_equal(q, want)
    np.testing.assert_array_equal(k, want)
    np.testing.assert_array_equal(v, np.ones((1, 2, 1, 8)))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("blossom", {"qkv", "gate", "compressor", "out"}),
        ("ltis", {"qkv", "compressor", "out"}),
        ("stis", {"qkv", "out"}),
        ("dense", {"qkv", "out"}),
        ("dense_gated", {"qkv", "gate", "out"}),
        ("linear", {"qkv", "out"}),
        ("silu", {"qkv", "distance_bias", "out"}),
    ],
)
def test_each_attention_has_the_parameters_it_uses(name, names):
    assert parameter_names(make(name)) == names


@pytest.mark.parametrize("name", ["blossom", "dense_gated"])
def test_the_gate_starts_where_it_is_told(name):
    for bias in [(0.0, 0.0), (-2.0, 2.0)]:
        starts = dict(zip(("gate_bias_ltis", "gate_bias_stis"), bias, strict=True))
        config = ModelConfig(**SIZES, attention=name, **starts)
        module = make_mixer(config, rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(module.gate.bias[...].reshape(4, 2), [bias] * 4)


@pytest.mark.parametrize("name", ["blossom", "dense_gated"])
def test_a_constant_gate_has_no_parameters(name):
    x, positions = packed_row()
    total, average = (make(name, gate=gate) for gate in ("sum", "average"))
    assert "gate" not in parameter_names(average)
    np.testing.assert_allclose(total(x, positions), 2 * average(x, positions), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "causal"),
    [(name, True) for name in ATTENTIONS]
    + [(name, False) for name in ATTENTIONS if name not in RECURRENT],
)
def test_a_packed_row_gives_what_each_sequence_gives_alone(name, causal):
    module = make(name, causal=causal)
    x, positions = packed_row()
    packed = np.asarray(jax.jit(module)(x, positions))
    begins = np.cumsum((0, *LENGTHS))
    alone, alone_positions = np.zeros((4, 14, 16), np.float32), np.full((4, 14), -1, np.int32)
    for row, (begin, n) in enumerate(zip(begins, LENGTHS, strict=False)):
        alone[row, :n], alone_positions[row, :n] = x[0, begin : begin + n], np.arange(n)
    rows = np.asarray(jax.jit(module)(jnp.asarray(alone), jnp.asarray(alone_positions)))
    for row, (begin, n) in enumerate(zip(begins, LENGTHS, strict=False)):
        error = np.linalg.norm(packed[0, begin : begin + n] - rows[row, :n])
        assert error <= 1e-5 * np.linalg.norm(rows[row, :n])
        assert not rows[row, n:].any()
    assert np.abs(packed[0, :-2]).max() > 0.1


@pytest.mark.parametrize("name", ATTENTIONS)
def test_padding_is_never_read(name):
    module = make(name)
    x, positions = packed_row(lengths=(6, 5), padding=5)
    other = x.at[:, -5:].set(100.0)
    graphdef, params = nnx.split(module)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            out = nnx.merge(graphdef, params)(x, positions)
            return (out**2).sum(), out

        (_, out), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return out, grads

    out, (params_grad, x_grad) = run(params, x)
    assert not out[:, -5:].any()
    assert not x_grad[:, -5:].any()
    assert np.abs(x_grad).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, run(params, other), (out, (params_grad, x_grad)))


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_short_rows_and_rows_of_padding(name, length):
    module = make(name)
    positions = jnp.stack([jnp.arange(length), jnp.full(length, -1)]).astype(jnp.int32)
    x = jnp.ones((2, length, 16))
    out = np.asarray(jax.jit(module)(x, positions))
    assert np.isfinite(out).all() and out[0].any() and not out[1].any()


@pytest.mark.parametrize("causal", [True, False])
def test_sparse_paths_that_see_everything_are_dense(causal):
    x, positions = packed_row()
    dense = make("dense", causal=causal)
    want = jax.jit(dense)(x, positions)
    wide = copy_parameters(dense, make("stis", causal=causal, window=32))
    np.testing.assert_allclose(jax.jit(wide)(x, positions), want, atol=2e-5)
    if causal:  # otherwise the own block is not a candidate where S != s
        blocks = copy_parameters(dense, make("ltis", num_selected_blocks=8))
        np.testing.assert_allclose(jax.jit(blocks)(x, positions), want, atol=2e-5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_bfloat16_is_close_to_float32(name):
    x, positions = packed_row()
    # Selection may differ after rounding, so every block is selected.
    want = jax.jit(make(name, num_selected_blocks=8))(x, positions)
    rounded = make(name, num_selected_blocks=8, dtype="bfloat16")
    got = jax.jit(rounded)(x.astype(jnp.bfloat16), positions)
    assert got.dtype == jnp.bfloat16
    error = np.linalg.norm(got.astype(jnp.float32) - want) / np.linalg.norm(want)
    assert error < 2e-2


def test_dense_attention_says_what_serves_it(caplog):
    dense_attention._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="blossom_jax.dense_attention"):
        module = make("dense")
        for _ in range(2):
            module(*packed_row())
    assert module.implementation(packed=True) == "xla"
    assert [r.getMessage() for r in caplog.records] == ["dense attention runs on xla, packed=True"]


def test_cudnn_by_name_refuses_packed_rows():
    module = DenseAttention(
        ModelConfig(attention="dense", implementation="cudnn"), rngs=nnx.Rngs(0)
    )
    assert module.implementation(packed=False) == "cudnn"
    with pytest.raises(NotImplementedError, match="packed=True"):
        module(jnp.ones((1, 4, 64)), jnp.arange(4, dtype=jnp.int32)[None])


def test_cudnn_is_chosen_by_device_and_sizes(monkeypatch):
    def chosen(platform, capability, packed=False, **changes):
        device = type("Device", (), {"platform": platform, "compute_capability": capability})()
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        config = ModelConfig(**{"attention": "dense", "dtype": "bfloat16"} | changes)
        return DenseAttention(config, rngs=nnx.Rngs(0)).implementation(packed=packed)

    assert chosen("gpu", "9.0") == "cudnn"
    assert chosen("gpu", "9.0", packed=True) == "xla"
    assert chosen("gpu", "9.0", dtype="float32") == "xla"
    assert chosen("gpu", "9.0", implementation="xla") == "xla"
    assert chosen("gpu", "9.0", hidden_size=48) == "xla"  # heads of 12
    assert chosen("gpu", "7.5") == "xla"
    assert chosen("cpu", "") == "xla"
