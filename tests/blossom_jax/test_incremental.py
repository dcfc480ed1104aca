"""One event at a time against the whole history at once, at every event."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax import incremental, last_attention
from blossom_jax.attention import split_heads
from blossom_jax.errors import UserError
from blossom_jax.incremental_recommender import IncrementalRecommender
from blossom_jax.model import BlossomRec, ModelConfig
from pallas_kernels.block_selection.reference import block_probability, select_top
from pallas_kernels.blossom_attention.paths import add_by_gate
from pallas_kernels.masked_softmax import attend
from pallas_kernels.power_attention.reference import power_mask

NUM_ITEMS = 50
LENGTH = 38  # no whole number of blocks, so the ring has room to spare
SIZES = {
    "hidden_size": 16,
    "inner_size": 24,
    "num_layers": 1,
    "num_heads": 4,
    "num_kv_heads": 2,
    "compress_block_size": 8,  # windows overlap, and reach into the block before
    "compress_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 2,
    "window": 3,
    "max_length": LENGTH,
}
ITEMS = np.random.default_rng(1).integers(1, NUM_ITEMS + 1, (2, LENGTH)).astype(np.int32)


def make(**changes):
    """Makes a model whose parameters are large enough that no two blocks score alike."""
    model = BlossomRec(ModelConfig(**SIZES | changes), NUM_ITEMS, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = nnx.state(model, nnx.Param)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 3, x.dtype), state)
    nnx.update(model, drawn)
    return model


def all_scores(model, items):
    """Scores by the whole model after every event: [B, L, items]."""
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params, items):
        model = nnx.merge(graphdef, params)
        positions = jnp.broadcast_to(jnp.arange(items.shape[1], dtype=jnp.int32), items.shape)
        return model.scores(model(items, positions, packed=False))

    return np.asarray(run(params, items))


def walk(recommender, items, begun):
    """Yields (number of each user's last event, scores) at every step from `begun` on."""
    histories = [row[:n] for row, n in zip(items, begun, strict=True)]
    state = recommender.start_many(histories)
    for at in range(items.shape[1] - max(begun)):
        last = [n + at for n in begun]
        state, scores = recommender.step_many(state, [items[b, n] for b, n in enumerate(last)])
        yield last, np.asarray(scores)


def error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def largest_error(recommender, items, want, begun=(0, 13)):
    return max(
        error(scores[b], want[b, n])
        for last, scores in walk(recommender, items, begun)
        for b, n in enumerate(last)
    )


@pytest.mark.parametrize("attention", last_attention.ATTENTIONS)
def test_every_step_gives_the_scores_of_the_whole_model(attention):
    layers = 2 if attention == "blossom" else 1
    model = make(attention=attention, num_layers=layers)
    want = all_scores(model, ITEMS)
    assert largest_error(IncrementalRecommender(model), ITEMS, want) < 1e-5


def test_bfloat16_is_as_close_as_its_rounding():
    # Selection may differ after rounding, so every block is selected.
    model = make(dtype="bfloat16", num_selected_blocks=10)
    want = all_scores(model, ITEMS)
    recommender = IncrementalRecommender(model)
    assert recommender.start(ITEMS[0]).arrays.layers[0].tokens.dtype == jnp.bfloat16
    assert largest_error(recommender, ITEMS, want) < 2e-2


def test_a_state_grows_and_a_start_gives_the_last_scores(monkeypatch):
    monkeypatch.setattr(incremental, "_LEAST_CAPACITY", 8)
    model = make(attention="ltis")
    want = all_scores(model, ITEMS)
    recommender = IncrementalRecommender(model, max_events=16)
    state = recommender.start(ITEMS[0, :7])
    np.testing.assert_allclose(recommender.scores(state)[0], want[0, 6], atol=1e-5)
    capacities = []
    for n in range(7, 16):
        state, scores = recommender.step(state, ITEMS[0, n])
        capacities.append(state.arrays.capacity)
        assert error(scores, want[0, n]) < 1e-5
    assert capacities == [8] + [16] * 8
    assert state.num_events == (16,)


def sliding_scores(model, items, first):
    """Scores after every event where event i reads, in every layer, from `first[i]` on."""
    config, length = model.config, len(items)
    block, position = config.selection_block_size, jnp.arange(length, dtype=jnp.int32)
    kept = (position >= first[:, None])[None]  # [1, i, j]

    def summary_key(compressor, k, end):
        token = end - compressor.span + jnp.arange(compressor.span)
        keys = jnp.where((token >= first[end - 1])[:, None, None], k[0, token], 0)
        return compressor.block_key(keys.swapaxes(0, 1)[None])[0]

    def long_term(attention, q, k, v):
        ends = range(block, length + 1, block)
        keys = jnp.stack([summary_key(attention.compressor, k, end) for end in ends])
        mean = q.reshape(length, config.num_kv_heads, -1, config.head_size).mean(2)
        logits = jnp.einsum("igd,wgd->igw", mean, keys) * config.head_size**-0.5
        slot = jnp.arange(len(ends))
        own = position[:, None] // block
        candidate = (slot >= first[:, None] // block) & (slot < own)
        probability = block_probability(logits, candidate[:, None])
        chosen, _ = select_top(probability, config.num_selected_blocks)  # [i, G, N]
        chosen = jnp.concatenate([chosen, jnp.broadcast_to(own[:, None], chosen[..., :1].shape)], 2)
        seen = (position // block == chosen[..., None]).any(2)  # [i, G, j]
        causal = position <= position[:, None]
        return attend(q, k, v, (seen & causal[:, None]).swapaxes(0, 1)[None])

    def short_term(q, k, v):
        mask = power_mask(position[None], window=config.window, causal=True)
        return attend(q, k, v, (mask & kept)[:, None])

    x = model.embedding_norm(model.item_embedding(jnp.asarray(items)[None]))
    for layer in model.layers:
        q, k, v = split_heads(layer.attention.qkv(x), position[None], config)
        paths = long_term(layer.attention, q, k, v), short_term(q, k, v)
        attended = add_by_gate(layer.attention.gates(x), *paths).reshape(x.shape)
        x = layer.finish(x, layer.attention.out(attended))
    return model.scores(x)[0]


def test_past_the_bound_an_event_reads_what_is_kept_in_every_layer():
    model, bound = make(num_layers=2), 14
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params, items, first):
        return sliding_scores(nnx.merge(graphdef, params), items, first)

    first = incremental.first_kept(jnp.arange(LENGTH), bound, SIZES["selection_block_size"])
    whole, want = (np.asarray(run(params, ITEMS[0], first * moves)) for moves in (0, 1))
    assert error(whole, all_scores(model, ITEMS[:1])[0]) < 1e-5  # the definition defines the model
    assert error(want[bound:], whole[bound:]) > 1e-3  # and what leaves is missed
    recommender = IncrementalRecommender(model, max_events=bound)
    assert largest_error(recommender, ITEMS[:1], want[None], (0,)) < 1e-5


@pytest.mark.parametrize("attention", ["stis", "dense"])
def test_past_the_bound_one_layer_without_blocks_equals_the_kept_events_alone(attention):
    model, bound = make(attention=attention), 14
    recommender = IncrementalRecommender(model, max_events=bound)
    for (n,), scores in walk(recommender, ITEMS[:1], (0,)):
        if n in (14, 15, 21, 37):
            kept = ITEMS[0, incremental.first_kept(jnp.array([n]), bound, 4)[0] : n + 1]
            assert len(kept) <= bound
            alone = recommender.scores(recommender.start(kept))
            assert error(scores, alone) < 1e-5


def test_at_most_so_many_events_are_kept_and_whole_blocks_leave():
    position = np.arange(200)
    for bound, block in [(16, 16), (50, 16), (64, 16), (14, 4)]:
        first = np.asarray(incremental.first_kept(jnp.asarray(position), bound, block))
        kept = position + 1 - first
        assert (first % block == 0).all() and kept.min() >= 1
        assert kept.max() == bound and kept[bound:].min() == bound - block + 1
        sizes = {"selection_block_size": block, "compress_stride": block}
        largest = incremental.capacities(ModelConfig(**sizes), bound)[-1]
        assert ((position // block - first // block) < largest // block).all()


def test_long_histories_are_started_from_their_end():
    recommender = IncrementalRecommender(make(attention="stis"), max_events=14)
    long, short = (recommender.start(history) for history in (ITEMS[0], ITEMS[0, -14:]))
    np.testing.assert_array_equal(recommender.scores(long), recommender.scores(short))


@pytest.mark.parametrize("attention", last_attention.ATTENTIONS)
def test_bytes_are_those_of_the_rings(attention):
    config = ModelConfig(**SIZES | {"attention": attention, "dtype": "bfloat16"})
    model = nnx.eval_shape(lambda: BlossomRec(config, NUM_ITEMS, rngs=nnx.Rngs(0)))
    inputs = jax.ShapeDtypeStruct((3, 40), jnp.int32), jax.ShapeDtypeStruct((3,), jnp.int32)
    graphdef, params = nnx.split(model)
    state = jax.eval_shape(
        lambda params, *inputs: incremental.start(nnx.merge(graphdef, params), *inputs),
        params,
        *inputs,
    )
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.layers))
    assert size == 3 * 40 * incremental.bytes_per_event(config)


def test_no_program_holds_anything_as_long_as_the_history():
    config = ModelConfig(**SIZES | {"max_length": 2**16})
    recommender = IncrementalRecommender(BlossomRec(config, NUM_ITEMS, rngs=nnx.Rngs(0)))
    inputs = jax.ShapeDtypeStruct((1, 2**16), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    state = jax.eval_shape(recommender._start, recommender._params, *inputs)
    encode = recommender._encode.lower(recommender._params, state, inputs[1])
    event = jax.eval_shape(recommender._encode, recommender._params, state, inputs[1])[0]
    append = recommender._append.lower(state, event).compile().memory_analysis()
    rings = 2**16 * incremental.bytes_per_event(config)
    assert append.alias_size_in_bytes >= rings  # written in place,
    assert append.temp_size_in_bytes < 1e-3 * rings  # without a copy
    # Besides what it selects, an event costs some numbers for each summary key.
    assert encode.compile().memory_analysis().temp_size_in_bytes < 0.1 * rings


@pytest.mark.parametrize(
    ("changes", "max_events", "message"),
    [
        ({"causal": False}, 38, "model.causal=False"),
        ({"attention": "linear"}, 38, "model.attention='linear' cannot take one event at a time"),
        ({"positions": "learned"}, 38, "needs model.block='post_norm' and model.positions='rope'"),
        ({"selector": "mean"}, 38, "model.selector='mean' cannot take one event at a time"),
        ({}, 3, "max_events=3 must lie between model.selection_block_size=4"),
        ({}, 39, "max_events=39 .* model.max_length=38"),
    ],
)
def test_what_cannot_be_stepped_is_refused(changes, max_events, message):
    with pytest.raises(UserError, match=message):
        incremental.check(ModelConfig(**SIZES | changes), max_events)
