"""Losses by samples: dense formulas in float64, draws, meshes, and what is never made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import NUM_ITEMS, inputs

from blossom_jax import sharding
from blossom_jax.errors import UserError
from blossom_jax.losses import LossConfig, make_loss, negatives, sampled

NUM_NEGATIVES = 5
KEY = 3
COUNTS = np.r_[7, np.arange(NUM_ITEMS)[::-1] ** 2]  # what stands at padding does not count
CUMULATIVE = negatives.cumulative_counts(COUNTS)


def config(loss="bce", **changes):
    return LossConfig(loss=loss, loss_chunk=7, num_negatives=NUM_NEGATIVES, **changes)


def formula(loss, target, others, log_q):
    """One token's loss and its derivatives by the scores, of samples that are not the target."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    if loss == "sampled_softmax":
        terms = np.exp(np.r_[target, others - log_q - np.log(NUM_NEGATIVES)])
        p = terms / terms.sum()
        return -np.log(p[0]), p[0] - 1, p[1:]
    if loss == "bpr":
        d = sigmoid(others - target) / NUM_NEGATIVES
        return -np.log(sigmoid(target - others)).sum() / NUM_NEGATIVES, -d.sum(), d
    alpha = NUM_NEGATIVES / (NUM_ITEMS - 1)
    t = {"bce": 0.0, "gbce": 0.75}[loss]
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    value = -beta * np.log(sigmoid(target)) - np.log(1 - sigmoid(others)).sum()
    n = NUM_NEGATIVES + 1
    return value / n, -beta * sigmoid(-target) / n, sigmoid(others) / n


def dense_formula(loss, hidden, table, targets, drawn, log_q):
    """Loss and gradients in float64, token by token."""
    hidden, table = np.asarray(hidden, np.float64), np.asarray(table, np.float64)
    drawn, log_q = (np.broadcast_to(x, (len(hidden), NUM_NEGATIVES)) for x in (drawn, log_q))
    total, dhidden, dtable = 0.0, np.zeros_like(hidden), np.zeros_like(table)
    for t in np.flatnonzero(targets):
        kept = drawn[t] != targets[t]
        items = np.r_[targets[t], drawn[t][kept]]
        scores = table[items] @ hidden[t]
        value, *d = formula(loss, scores[0], scores[1:], log_q[t][kept])
        d = np.r_[tuple(d)]
        total += value
        dhidden[t] = d @ table[items]
        np.add.at(dtable, items, np.outer(d, hidden[t]))
    return total, dhidden, dtable


@functools.cache
def compiled(loss_config, mesh=None):
    loss = make_loss(loss_config, num_items=NUM_ITEMS, mesh=mesh)

    def total(hidden, table, targets, cumulative):
        return loss(hidden, table, targets, jax.random.key(KEY), cumulative)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def loss_and_gradients(loss_config, hidden, table, targets, mesh=None):
    cumulative = CUMULATIVE if loss_config.by_popularity else None
    (value, count), gradients = compiled(loss_config, mesh)(hidden, table, targets, cumulative)
    assert count == np.sum(np.asarray(targets) > 0)
    return value, *gradients


def draw(loss_config):
    """Draws what the loss draws, and the probabilities in float64."""
    shape = (1 if loss_config.shared_negatives else len(inputs()[0]), NUM_NEGATIVES)
    cumulative = jnp.asarray(CUMULATIVE) if loss_config.by_popularity else None
    drawn = np.asarray(negatives.draw(jax.random.key(KEY), shape, NUM_ITEMS, cumulative))
    q = (COUNTS[drawn] + 1) / (COUNTS[1:] + 1).sum() if loss_config.by_popularity else 1 / NUM_ITEMS
    return drawn, np.log(np.broadcast_to(q, drawn.shape))


def assert_equal_to_dense(found, loss_config, *case, tolerance=1e-6):
    dense = dense_formula(loss_config.loss, *case, *draw(loss_config))
    for ours, theirs in zip(found, dense, strict=True):
        error = np.linalg.norm(np.asarray(ours, np.float64) - theirs)
        assert error <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("loss", "shared", "popularity"),
    [
        ("sampled_softmax", True, "popularity"),
        ("sampled_softmax", False, "popularity"),
        ("gbce", False, "uniform"),
        ("bce", True, "uniform"),
        ("bpr", False, "uniform"),
    ],
)
def test_dense_formula(loss, shared, popularity):
    loss_config = config(loss, shared_negatives=shared, negatives=popularity)
    case = inputs()  # some of whose targets are drawn
    case[2][:3] = draw(loss_config)[0][0, :3]
    assert_equal_to_dense(loss_and_gradients(loss_config, *case), loss_config, *case)


@pytest.mark.parametrize(
    ("mesh", "loss", "shared"), [((2, 4), "sampled_softmax", True), ((4, 2), "bpr", False)]
)
def test_a_mesh_gives_the_numbers_of_one_device(mesh, loss, shared):
    hidden, table, targets = inputs()
    targets[:12] = 0  # the first devices have nothing to do
    loss_config = config(loss, shared_negatives=shared)
    mesh = sharding.make_mesh(*mesh)
    rows, table_rows = sharding.batch_sharding(mesh), jax.NamedSharding(mesh, sharding.TABLE_ROWS)
    placed = jax.device_put((hidden, table, targets), (rows, table_rows, rows))
    found = loss_and_gradients(loss_config, *placed, mesh)
    assert_equal_to_dense(found, loss_config, hidden, table, targets)
    assert found[2].sharding.is_equivalent_to(table_rows, 2)
    program = compiled(loss_config, mesh).lower(*placed, None).compile().as_text()
    assert f"f32[{len(table)},{table.shape[1]}]" not in program  # no device has the whole table


def test_bf16_sums_in_f32():
    hidden, table, targets = inputs()
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    loss_config = config("sampled_softmax")
    found = loss_and_gradients(loss_config, hidden, table, targets)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bfloat16, jnp.float32]
    table = np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32)
    assert_equal_to_dense(found, loss_config, hidden, table, targets, tolerance=5e-3)


def test_sampled_softmax_estimates_the_sum_over_the_catalogue():
    # As many samples of each item as its probability says: then the estimate is exact.
    drawn = np.repeat(np.arange(1, NUM_ITEMS + 1), COUNTS[1:] + 1)
    log_q = negatives.log_probability(jnp.asarray(drawn), NUM_ITEMS, jnp.asarray(CUMULATIVE))
    scores = np.random.default_rng(0).standard_normal(NUM_ITEMS + 1).astype(np.float32)
    found = sampled.sampled_softmax(
        jnp.asarray(scores[[9]]),
        jnp.asarray(scores[drawn])[None],
        jnp.asarray(drawn != 9)[None],
        log_q[None],
    )
    np.testing.assert_allclose(found, np.log(np.exp(scores[1:]).sum()) - scores[9], rtol=1e-5)


def test_draws_follow_the_counts():
    drawn = negatives.draw(jax.random.key(0), (100_000,), NUM_ITEMS, jnp.asarray(CUMULATIVE))
    share = np.bincount(drawn, minlength=NUM_ITEMS + 1) / 100_000
    expected = np.r_[0, COUNTS[1:] + 1] / (COUNTS[1:] + 1).sum()
    assert np.all(np.abs(share - expected) <= 5 * np.sqrt(expected / 100_000))
    uniform = negatives.draw(jax.random.key(0), (100_000,), NUM_ITEMS)
    assert np.ptp(np.bincount(uniform, minlength=NUM_ITEMS + 1)[1:] * NUM_ITEMS / 1e5) < 0.3
    np.testing.assert_array_equal(np.unique(uniform), np.arange(1, NUM_ITEMS + 1))


def test_large_catalogues_are_drawn_from_to_the_end():
    # Steps of 2**-24 or less: a distribution function in f32 would leave out half of the items.
    cumulative = jnp.asarray(negatives.cumulative_counts(np.zeros(2**25 + 1, np.int32)))
    drawn = negatives.draw(jax.random.key(0), (1000,), 2**25, cumulative)
    assert 0.4 < np.mean(drawn % 2) < 0.6
    with pytest.raises(ValueError, match=r"below 2\*\*31"):
        negatives.cumulative_counts(np.full(3, 2**30))


def test_no_array_of_tokens_by_items():
    hidden, table, targets = inputs()
    program = compiled(config(shared_negatives=False)).lower(hidden, table, targets, None)
    text = program.compile().as_text()
    assert not any(f"{len(hidden)},{rows}]" in text for rows in (NUM_ITEMS, len(table)))
    assert f"[7,{NUM_NEGATIVES},{hidden.shape[1]}]" in text  # of a chunk, the rows of its negatives
    assert f"[{len(hidden)},{NUM_NEGATIVES},{hidden.shape[1]}]" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "hinge"}, "train.loss must be one of 'cross_entropy', .* got 'hinge'"),
        ({"negatives": "hard"}, "train.negatives must be one of 'uniform', 'popularity', got 'har"),
        ({"num_negatives": 0}, "train.num_negatives must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, r"train.label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"gbce_t": -0.1}, r"train.gbce_t must lie in \[0, 1\], got -0.1"),
        ({"loss": "bpr", "label_smoothing": 0.1}, "is of train.loss=cross_entropy alone: set it t"),
        ({"loss": "bpr", "loss_implementation": "xla"}, "is of train.loss=cross_entropy alone: se"),
        ({"loss_implementation": "cuda"}, "train.loss_implementation must be one of '', 'xla', "),
    ],
)
def test_what_makes_no_loss_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        LossConfig(**changes)


def test_gbce_cannot_sample_more_than_there_is():
    make_loss(LossConfig(loss="gbce", num_negatives=44), num_items=45)
    with pytest.raises(UserError, match="train.num_negatives=45 must be below the 45 items"):
        make_loss(LossConfig(loss="gbce", num_negatives=45), num_items=45)


def test_caller_mistakes():
    hidden, table, targets = map(jnp.asarray, inputs())
    run = functools.partial(sampled.sampled_loss, formula=sampled.binary_cross_entropy)
    some = jnp.ones((2, 3), jnp.int32)
    with pytest.raises(ValueError, match=r"of all tokens or of each, got negatives.shape=\(2, 3\)"):
        run(hidden, table, targets, some, some.astype(jnp.float32))
    with pytest.raises(ValueError, match="chunk=0"):
        run(hidden, table, targets, some[:1], some[:1].astype(jnp.float32), chunk=0)
