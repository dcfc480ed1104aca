"""The softmax over items by kernels, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import either

from pallas_kernels.item_softmax import api as item_softmax
from pallas_kernels.item_softmax import kernels

ERROR = {"float32": 5e-6, "bfloat16": 4e-3}
CASES = [  # tokens, items, hidden size, tokens that matter, rows that are items
    (100, 200, 32, 77, (1, 190)),
    (300, 2000, 24, 300, (0, 2000)),  # padded columns
    (70, 5000, 16, 10, (64, 4500)),  # several programs share the items
    (2100, 90, 16, 2100, (1, 90)),  # and the tokens
    (33, 90, 16, 0, (1, 80)),  # nothing matters
    (70, 1100, 200, 69, (3, 1097)),  # the widest
]
INTERPRET, ON_GPU = either(True, False)


def draw(case, dtype):
    tokens, items, size, count, bounds = case
    keys = jax.random.split(jax.random.key(0))
    hidden, embeddings = (
        jax.random.normal(key, (n, size), dtype)
        for key, n in zip(keys, (tokens, items), strict=True)
    )
    return item_softmax.Logits(hidden, embeddings, jnp.array(bounds, jnp.int32), jnp.int32(count))


def in_float64(hidden, embeddings, bounds, count):
    hidden, embeddings = np.asarray(hidden, np.float64), np.asarray(embeddings, np.float64)
    row = np.arange(len(embeddings))
    logits = np.where((row >= bounds[0]) & (row < bounds[1]), hidden @ embeddings.T, -np.inf)
    highest = logits.max(1)
    log_total = highest + np.log(np.exp(logits - highest[:, None]).sum(1))
    p = np.exp(logits - log_total[:, None])
    p[count:] = 0
    return log_total, p @ embeddings, p.T @ hidden


def found(logits, interpret):
    mean, log_total = item_softmax.mean_embedding(logits, interpret=interpret)
    mean = jnp.where(jnp.arange(len(mean))[:, None] < logits.num_tokens, mean, 0)
    return log_total, mean, item_softmax.weighted_hidden(logits, log_total, interpret=interpret)


def check(case, dtype, interpret):
    logits = draw(case, dtype)
    ours, wanted = found(logits, interpret), in_float64(*logits)
    count = case[3]
    np.testing.assert_allclose(ours[0][:count], wanted[0][:count], rtol=1e-5, atol=1e-5)
    for x, y in zip(ours[1:], wanted[1:], strict=True):
        assert x.dtype == jnp.float32 and x.shape == y.shape
        error = np.linalg.norm(np.asarray(x, np.float64) - y)
        assert error <= ERROR[dtype] * max(np.linalg.norm(y), 1e-12)


@pytest.mark.parametrize("interpret", [INTERPRET])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_float64(case, dtype, interpret):
    check(case, dtype, interpret)


@pytest.mark.parametrize("interpret", [ON_GPU])
@pytest.mark.parametrize("case", [*CASES, (4000, 20_000, 128, 3999, (1, 19_990))], ids=str)
def test_equals_float64_on_a_gpu(case, interpret):
    check(case, "bfloat16", interpret)


@pytest.mark.parametrize("interpret", [INTERPRET, ON_GPU])
def test_repeats_are_bit_equal(interpret):
    logits = draw(CASES[2], "bfloat16")
    for x, y in zip(found(logits, interpret), found(logits, interpret), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("interpret", [INTERPRET, ON_GPU])
@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=["one share", "several shares"])
@pytest.mark.parametrize("item", [1e2, -1e2])
def test_logits_may_be_large(case, item, interpret):
    mean, log_total, wanted = alike(case, item, interpret)
    np.testing.assert_allclose(log_total, wanted, rtol=1e-5)
    np.testing.assert_allclose(mean, np.full_like(mean, item), rtol=1e-2)


@pytest.mark.parametrize("interpret", [INTERPRET, ON_GPU])
@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=["one share", "several shares"])
@pytest.mark.parametrize("item", [1e16, -1e16])
def test_logits_beyond_float32_do_not_pass_for_others(case, item, interpret, monkeypatch):
    if interpret:  # a GPU rounds the product of one logit in two ways
        monkeypatch.setattr(kernels, "fma", lambda a, b, c, _: a * b + c - 1e-8 * jnp.abs(a))
    _, log_total, wanted = alike(case, item, interpret)
    lost = np.isnan(log_total) | np.isposinf(log_total)
    assert np.all(np.isclose(log_total, wanted, rtol=1e-5) | lost)


def alike(case, item, interpret):
    """Returns what tokens that matter find where all items but one, which is below, are alike."""
    logits = draw(case, "bfloat16")
    items = jnp.full_like(logits.items, item).at[case[4][0]].set(item - abs(item) / 2)
    logits = logits._replace(hidden=jnp.full_like(logits.hidden, 1e4), items=items)
    mean, log_total = item_softmax.mean_embedding(logits, interpret=interpret)
    count = case[3]
    return mean[:count], log_total[:count], in_float64(*logits)[0][:count]


@pytest.mark.parametrize("what", [np.nan, np.inf])
@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=["one share", "several shares"])
def test_a_broken_item_breaks_the_loss(case, what):
    logits = draw(case, "bfloat16")
    logits = logits._replace(items=logits.items.at[case[4][0] + 5].set(what))
    mean, log_total = item_softmax.mean_embedding(logits, interpret=True)
    assert not np.any(np.isfinite(log_total[: case[3]]))
    assert np.all(np.any(np.isnan(mean[: case[3]]), axis=1))


@pytest.mark.parametrize(
    ("size", "tokens", "rows", "words"),
    [
        (256, 2**23 - 1, 2**23 - 1, None),
        (257, 1, 1, "hidden size 257 is above 256"),
        (256, 2**23, 1, "8388608 tokens of size 256 are more than 2147483647 elements"),
        (129, 1, 2**23, "8388608 rows of the table of size 129 are more than"),
    ],
)
def test_limits(size, tokens, rows, words):
    found = item_softmax.refusal("bfloat16", size, tokens=tokens, rows=rows)
    assert (found is None) if words is None else found.startswith(words)


def test_dtypes_must_agree():
    logits = draw(CASES[0], "bfloat16")
    with pytest.raises(ValueError, match="must share a dtype"):
        item_softmax.mean_embedding(logits._replace(items=logits.items.astype("float32")))


def test_programs_share_the_rows_where_tokens_are_few():
    def programs(tokens, items):
        shapes = [jax.ShapeDtypeStruct((n, 128), "bfloat16") for n in (tokens, items)]
        others = [jax.ShapeDtypeStruct(shape, "int32") for shape in ((2,), ())]
        traced = jax.make_jaxpr(item_softmax.mean_embedding)(item_softmax.Logits(*shapes, *others))
        (call,) = [e for e in traced.eqns if e.primitive.name == "pallas_call"]
        return call.params["grid_mapping"].grid

    assert [programs(64 * n, 64 * 8 * 100) for n in (1, 64, 3000)] == [(100,), (1024,), (3000,)]


def test_a_device_without_items_adds_nothing():
    logits = draw(CASES[0], "float32")._replace(item_bounds=jnp.array([200, 200], jnp.int32))
    mean, log_total = item_softmax.mean_embedding(logits, interpret=True)
    assert np.all(np.asarray(log_total) < -1e29) and not np.any(mean)
    elsewhere = jnp.zeros_like(log_total)
    assert not np.any(item_softmax.weighted_hidden(logits, elsewhere, interpret=True))


def test_tokens_that_do_not_matter_may_hold_anything():
    logits, count = draw(CASES[0], "bfloat16"), CASES[0][3]
    spoilt = logits._replace(hidden=logits.hidden.at[count:].set(jnp.nan))
    ours, wanted = (found(x, True) for x in (spoilt, logits))
    np.testing.assert_array_equal(ours[0][:count], wanted[0][:count])
    np.testing.assert_array_equal(ours[1], wanted[1])
    np.testing.assert_array_equal(ours[2], wanted[2])
