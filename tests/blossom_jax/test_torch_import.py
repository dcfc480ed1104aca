"""The authors' weights in our modules: outputs and gradients of every golden file."""

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from blossom_jax import torch_import, torch_names
from blossom_jax.attention import BlossomAttention
from blossom_jax.errors import UserError
from blossom_jax.losses import full_cross_entropy

BOUND = 1e-5


def attention_and_file(name):
    file = golden.load(name)
    causal = bool(file["hyper/causal"])
    return torch_import.attention_from_state_dict(
        golden.section(file, "param"), **golden.sizes(file), causal=causal
    ), file


def with_config(attention, /, **changes):
    """Copies an attention module with another config; parameters of that name are shared."""
    other = BlossomAttention(dataclasses.replace(attention.config, **changes), rngs=nnx.Rngs(0))
    state = nnx.to_flat_state(nnx.state(attention))
    names = {path for path, _ in nnx.to_flat_state(nnx.state(other))}
    nnx.update(other, nnx.from_flat_state([pair for pair in state if pair[0] in names]))
    return other


def gradients(module, loss):
    """Returns `loss(module)`, a pair of loss and anything, and the gradients by path."""
    graphdef, params = nnx.split(module, nnx.Param)
    step = jax.value_and_grad(lambda params: loss(nnx.merge(graphdef, params)), has_aux=True)
    value, grads = jax.jit(step)(params)
    grads = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(grads)}
    return jax.tree.map(np.asarray, value), grads


def in_their_layout(grads, paths, name):
    value = grads[paths[name]]
    return value.T if paths[name][-1] == "kernel" else value


@pytest.mark.parametrize("name", golden.ATTENTION_FILES)
def test_attention_and_its_gradients(name):
    attention, file = attention_and_file(name)
    mask, cotangent = file["mask"], jnp.asarray(file["cotangent"], jnp.float32)
    positions = jnp.asarray(golden.positions_of(mask))
    holder = nnx.Dict(attention=attention, input=nnx.Param(jnp.asarray(file["input"], jnp.float32)))

    def loss(holder):
        output = holder.attention(holder.input[...], positions)
        return jnp.sum(output * cotangent), output

    (_, output), grads = gradients(holder, loss)
    assert golden.relative_error(output[mask], file["output"][mask]) < BOUND
    assert not output[~mask].any()
    attention_paths = torch_names.attention_paths()
    paths = {theirs: ("attention", *ours) for theirs, ours in attention_paths.items()}
    paths["input"] = ("input",)
    for name, want in golden.section(file, "grad").items():
        assert golden.relative_error(in_their_layout(grads, paths, name), want) < BOUND, name
    assert not grads[("input",)][~mask].any()


@pytest.mark.parametrize("name", golden.ATTENTION_FILES)
def test_rows_packed_into_one_and_each_path_alone(name):
    attention, file = attention_and_file(name)
    long_term, short_term = (with_config(attention, attention=path) for path in ("ltis", "stis"))
    mask = file["mask"]
    padding = np.random.default_rng(0).normal(size=(5, file["input"].shape[-1]))
    x = jnp.asarray(np.concatenate([file["input"][mask], padding])[None], jnp.float32)
    positions = np.concatenate([golden.positions_of(mask)[mask], np.full(5, -1)])[None]

    @jax.jit
    def run(x, positions):
        return {
            "output": attention(x, positions),
            "ltis_only": long_term(x, positions),
            "stis_only": short_term(x, positions),
        }

    for output, got in run(x, jnp.asarray(positions, jnp.int32)).items():
        assert golden.relative_error(got[0, :-5], file[output][mask]) < BOUND, output
        assert not got[0, -5:].any()


@pytest.mark.parametrize(
    ("path", "selection_gradient"),
    [("blossom", "none"), ("blossom", "straight_through"), ("ltis", "straight_through")],
)
def test_the_compressor_trains_by_straight_through_alone(path, selection_gradient):
    attention, file = attention_and_file("attention_causal_ragged_70")
    attention = with_config(attention, attention=path, selection_gradient=selection_gradient)
    x = jnp.asarray(file["input"], jnp.float32)
    positions = jnp.asarray(golden.positions_of(file["mask"]))
    _, grads = gradients(attention, lambda module: (jnp.sum(module(x, positions) ** 2), None))
    compressor = {path: grad for path, grad in grads.items() if path[0] == "compressor"}
    assert len(compressor) == 5
    for path, grad in compressor.items():
        assert grad.any() == (selection_gradient == "straight_through"), path


def model_and_file():
    file = golden.load("model_two_layer_50")
    state_dict, sizes = golden.section(file, "param"), golden.sizes(file)
    return torch_import.model_from_state_dict(state_dict, num_layers=2, **sizes), file


def item_ids_and_positions(file):
    item_ids = jnp.asarray(file["item_seq"], jnp.int32)
    return item_ids, jnp.asarray(golden.positions_of(file["item_seq"] > 0))


def last_hidden(model, file):
    hidden = model(*item_ids_and_positions(file))
    return hidden[jnp.arange(len(hidden)), file["item_seq_len"] - 1]


def test_model_and_its_gradients():
    model, file = model_and_file()

    def loss(model):
        state = last_hidden(model, file)
        loss_sum, count = full_cross_entropy(
            state,
            model.item_embedding.embedding[...],
            jnp.asarray(file["target"], jnp.int32),
            num_items=model.num_items,
            include_padding=True,  # as in the authors' loss
        )
        return loss_sum / count, (state, model.scores(state))

    (value, (state, scores)), grads = gradients(model, loss)
    assert golden.relative_error(state, file["user_state"]) < BOUND
    assert golden.relative_error(scores, file["scores"]) < BOUND
    assert golden.relative_error(value, file["loss"]) < BOUND
    for name, want in golden.section(file, "grad").items():
        got = in_their_layout(grads, torch_names.model_paths(2), name)[: len(want)]
        assert golden.relative_error(got, want) < BOUND, name


def test_model_that_is_promised_short_histories():
    """The promise lets the attention treat them as dense bands."""
    model, file = model_and_file()
    for layer in model.layers:
        layer.attention.config = dataclasses.replace(model.config, max_length=50)
    state = jax.jit(lambda: last_hidden(model, file))()
    assert golden.relative_error(state, file["user_state"]) < BOUND


def change(state_dict, **changes):
    """Returns a copy with dots for double underscores; None removes a name."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return {k: v for k, v in {**state_dict, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to_qkv__weight": None}, "missing to_qkv.weight$"),
        ({"to_qkv__weight": None, "gate": 0}, "missing to_qkv.weight; unknown gate$"),
        ({"to_qkv__weight": np.zeros(3)}, "to_qkv.weight must be a matrix"),
        ({"to_qkv__weight": np.zeros((64, 8))}, "to_qkv.weight is (64, 8), not (16, 8)"),
        ({"k_compress__3__bias": np.zeros(9)}, "k_compress.3.bias is (9,), not (8,)$"),
    ],
)
def test_a_state_dict_that_does_not_fit(changes, message):
    file = golden.load("attention_causal_64")
    state_dict = change(golden.section(file, "param"), **changes)
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(UserError, match=pattern) as error:
        torch_import.attention_from_state_dict(state_dict, **golden.sizes(file))
    assert "\n" not in str(error.value)


def test_another_number_of_layers():
    file = golden.load("model_two_layer_50")
    state_dict, sizes = golden.section(file, "param"), golden.sizes(file)
    with pytest.raises(UserError, match=r"missing trm_encoder\.layer\.2\."):
        torch_import.model_from_state_dict(state_dict, num_layers=3, **sizes)
    with pytest.raises(UserError, match=r"unknown trm_encoder\.layer\.1\."):
        torch_import.model_from_state_dict(state_dict, num_layers=1, **sizes)


def test_save_and_load(tmp_path):
    model, file = model_and_file()
    torch_import.save_model(model, tmp_path / "model")
    loaded = torch_import.load_model(tmp_path / "model")
    assert loaded.config == model.config
    inputs = item_ids_and_positions(file)
    np.testing.assert_array_equal(jax.jit(loaded)(*inputs), jax.jit(model)(*inputs))
    with pytest.raises(UserError, match="not an empty folder"):
        torch_import.save_model(model, tmp_path / "model")
