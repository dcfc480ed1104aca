"""What chooses blocks, or does without: rules, causality, packing, and the number of keys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax.compression import mean_keys
from blossom_jax.config import SELECTORS, ModelConfig
from blossom_jax.errors import UserError
from blossom_jax.mixers import make_mixer
from blossom_jax.selectors import most_attended_blocks, random_blocks, recent_blocks
from blossom_jax.summary_attention import summary_attention
from pallas_kernels import selected_attention

SIZES = {
    "hidden_size": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "compress_block_size": 4,
    "compress_stride": 4,
    "selection_block_size": 4,
    "num_selected_blocks": 4,
    "window": 2,
    "max_length": 64,
    "selection_gradient": "straight_through",
}
BLOCK, NUM_SELECTED = SIZES["selection_block_size"], SIZES["num_selected_blocks"]
LENGTHS = (41, 1, 22)


def make(selector, attention="blossom"):
    config = ModelConfig(**SIZES, selector=selector, attention=attention)
    module = make_mixer(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = nnx.state(module, nnx.Param)
    draw = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype), state)
    nnx.update(module, draw)
    return jax.jit(module)


def batch(lengths=LENGTHS, row_length=68, seed=1):
    """Packs sequences into a row; and below it puts each into a row of its own."""
    positions = np.full((1 + len(lengths), row_length), -1, np.int32)
    x = np.zeros((*positions.shape, SIZES["hidden_size"]), np.float32)
    begin, rng = 0, np.random.default_rng(seed)
    for row, n in enumerate(lengths, 1):
        positions[0, begin : begin + n] = positions[row, :n] = np.arange(n)
        x[row, :n] = x[0, begin : begin + n] = rng.normal(size=(n, SIZES["hidden_size"]))
        begin += n
    return jnp.asarray(x), jnp.asarray(positions)


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_packs_and_never_sees_the_future(selector):
    attend = make(selector)
    x, positions = batch()
    out = np.asarray(attend(x, positions))
    assert np.isfinite(out).all() and not out[np.asarray(positions) < 0].any()
    begins = np.cumsum((0, *LENGTHS))
    for row, (begin, n) in enumerate(zip(begins, LENGTHS, strict=False), 1):
        np.testing.assert_allclose(out[0, begin : begin + n], out[row, :n], atol=2e-5)
    for changed in (40, 33):  # one token of a sequence, in the middle of a block and at its begin
        other = np.asarray(attend(x.at[:2, changed].add(1.0), positions))
        np.testing.assert_array_equal(other[:, :changed], out[:, :changed])
        assert np.abs(other[1, changed] - out[1, changed]).max() > 1e-3


def test_all_blocks_chosen_is_the_same_whoever_chooses():
    x, positions = batch(lengths=(20, 3))  # 4 blocks and the own one
    outputs = {name: make(name, "ltis")(x, positions) for name in ("mean", "recent", "oracle")}
    # "random" draws from the same 4, and with no older tokens there is nothing to average.
    outputs["random"] = make("random", "ltis")(x, positions)
    for name in outputs:
        np.testing.assert_allclose(outputs[name], outputs["mean"], atol=2e-5, err_msg=name)


def heads(length=41, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(1, length, h, 4)), jnp.float32) for h in (4, 2, 2))
    return q, k, v, jnp.arange(length, dtype=jnp.int32)[None]


def test_recent_blocks_are_a_window():
    *_, positions = heads()
    slots, probability = recent_blocks(
        positions, block_size=BLOCK, num_selected=NUM_SELECTED, num_kv_heads=2
    )
    assert slots.shape == (1, 41, 2, 4)
    for position, want in ((40, [9, 8, 7, 6]), (11, [1, 0, -1, -1]), (3, [-1] * 4)):
        np.testing.assert_array_equal(slots[0, position], [want] * 2)
    np.testing.assert_allclose(probability.sum(-1)[0, 4:], 1)


def test_random_blocks_are_different_earlier_ones_fixed_by_seed():
    *_, positions = heads()
    sizes = {"block_size": BLOCK, "num_selected": 4, "num_kv_heads": 2, "max_length": 64}
    slots = np.asarray(random_blocks(positions, seed=0, **sizes)[0])
    for position in range(41):
        for chosen in slots[0, position]:
            real = chosen[chosen >= 0]
            assert len(real) == min(4, position // BLOCK) == len(set(real))
            assert (real < position // BLOCK).all()
    np.testing.assert_array_equal(slots, random_blocks(positions, seed=0, **sizes)[0])
    assert (slots != random_blocks(positions, seed=1, **sizes)[0]).any()
    assert (slots[:, :, 0] != slots[:, :, 1]).any()
    np.testing.assert_array_equal(np.unique(slots[slots >= 0]), np.arange(10))


def test_the_oracle_chooses_what_dense_attention_weighs_most():
    q, k, _, positions = heads()
    slots, mass = most_attended_blocks(q, k, positions, block_size=BLOCK, num_selected=NUM_SELECTED)
    for i in (40, 22):
        logits = np.einsum("grd,jgd->grj", q[0, i].reshape(2, 2, 4), k[0, : i + 1]) / 2
        weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        complete = i // BLOCK * BLOCK
        by_block = weight.mean(1)[:, :complete].reshape(2, -1, BLOCK).sum(-1)
        np.testing.assert_array_equal(slots[0, i], np.argsort(-by_block)[:, :4])
        np.testing.assert_allclose(mass[0, i], -np.sort(-by_block)[:, :4], rtol=1e-5)


def test_mean_keys_average_complete_blocks():
    _, k, _, positions = heads()
    keys = mean_keys(k, positions, block_size=BLOCK)
    np.testing.assert_allclose(keys[:, :10], k[:, :40].reshape(1, 10, 4, 2, 4).mean(2), atol=1e-6)
    assert not keys[:, 10].any()


@pytest.mark.parametrize("num_summaries", [4, 16])
def test_summaries_are_averages_of_what_lies_before_the_window(num_summaries):
    q, k, v, positions = heads()
    sizes = {"block_size": BLOCK, "num_selected": NUM_SELECTED}
    attend = jax.jit(partial(summary_attention, num_summaries=num_summaries, **sizes))
    out = attend(q, k, v, positions)
    i = 39
    begin = 36 - (16 - num_summaries)  # the own block begins at 36
    edges = np.arange(num_summaries + 1) * begin // num_summaries
    spans = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    def listed(x):
        x = np.asarray(x[0])
        return np.concatenate([[x[s].mean(0) for s in spans], x[begin : i + 1]])

    assert len(listed(k)) == 16 + 4  # as many keys as 4 blocks and the own one have
    logits = np.einsum("grd,jgd->grj", q[0, i].reshape(2, 2, 4), listed(k)) / 2
    weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = np.einsum("grj,jgd->grd", weight, listed(v)).reshape(4, 4)
    np.testing.assert_allclose(out[0, i], want, atol=1e-5)
    # Without older tokens it is the window alone, which the recent blocks are too.
    slots, probability = recent_blocks(positions, num_kv_heads=2, **sizes)
    window = selected_attention(q, k, v, slots, probability, positions, block_size=BLOCK)
    np.testing.assert_allclose(
        out[0, : 17 - num_summaries], window[0, : 17 - num_summaries], atol=1e-5
    )


def test_gates_that_are_not_learned_weigh_the_paths_alike():
    x, positions = batch(lengths=(20,))
    # A learned gate that starts wide open is the sum.
    config = ModelConfig(**SIZES, gate_bias_ltis=20.0, gate_bias_stis=20.0)
    learned = make_mixer(config, rngs=nnx.Rngs(0))
    want = np.asarray(jax.jit(learned)(x, positions))
    assert np.abs(want).max() > 1e-5
    for gate, weight in (("sum", 1), ("average", 0.5)):
        module = make_mixer(ModelConfig(**SIZES, gate=gate), rngs=nnx.Rngs(1))
        assert module.gate is None
        for part in ("qkv", "compressor", "out"):
            nnx.update(getattr(module, part), nnx.state(getattr(learned, part)))
        out = jax.jit(module)(x, positions)
        np.testing.assert_allclose(out, weight * want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"selector": "best"}, "model.selector must be one of"),
        ({"selector": "recent", "causal": False}, "model.causal must be true"),
        ({"selector": "summary16", "num_selected_blocks": 2}, "raise one of these"),
        ({"selector_seed": -1}, "model.selector_seed must be at least 0"),
        ({"gate": "max"}, "model.gate must be one of"),
        ({"gate_bias_stis": float("inf")}, "model.gate_bias_stis must be finite"),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        ModelConfig(**SIZES | changes)
