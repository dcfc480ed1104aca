import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from blossom_jax import negatives, sharding
from blossom_jax.data.evaluation_batches import (
    BatchShape,
    evaluation_batches,
    evaluation_shapes,
)
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.split import leave_one_out
from blossom_jax.evaluate import _GPU_OPTIONS, Evaluator, encode_last
from blossom_jax.model import BlossomRec, ModelConfig
from blossom_jax.packed_rows import one_a_row
from blossom_jax.popularity import item_counts
from blossom_jax.protocol_metrics import summarize

NUM_ITEMS, NUM_NEGATIVES, MAX_LENGTH = 40, 10, 24


@functools.cache
def log():
    """Users with histories of very different lengths, many of which repeat items."""
    rng = np.random.default_rng(0)
    lengths = rng.permutation([*rng.integers(3, 20, 45), 60, 150])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([np.arange(NUM_ITEMS) + 1, rng.integers(1, NUM_ITEMS + 1, offsets[-1])])
    return Interactions(
        name="toy",
        items=items[: offsets[-1]].astype(np.int32),
        times=None,
        offsets=offsets.astype(np.int64),
        user_ids=np.arange(len(lengths)).astype(str),
        item_ids=np.arange(NUM_ITEMS).astype(str),
        card={},
    )


def targets():
    return leave_one_out(log()).test


@functools.cache
def drawn():
    counts = item_counts(log(), leave_one_out(log()))
    return negatives.draw(log(), targets(), counts, num=NUM_NEGATIVES)


def encode_by_small_integers(table, batch):
    """Scores that no order of summation rounds: ties are ties on any mesh."""
    item_ids, positions, _ = one_a_row(
        batch["item_ids"], batch["positions"], batch["last"], MAX_LENGTH
    )
    return jnp.sum(table[item_ids] * (positions >= 0)[..., None], axis=1), table


def table():
    """Rows for the items, and surplus ones that would win if they were items."""
    rows = np.random.default_rng(1).integers(-2, 3, (NUM_ITEMS + 1, 6)).astype(np.float32)
    return np.pad(rows, [(0, 7), (0, 0)], constant_values=50)


def evaluate(
    batch_users=8,
    mesh=(1, 1),
    encode=encode_by_small_integers,
    params=None,
    with_coverage=False,
    chunk=64,
    with_loss=True,
):
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]])
    evaluator = Evaluator(encode, num_items=NUM_ITEMS, mesh=mesh, chunk=chunk, with_loss=with_loss)
    batches = evaluation_batches(
        log(), targets(), max_length=MAX_LENGTH, batch_users=batch_users, multiple_of=mesh.size
    )
    params = table() if params is None else params
    params = jax.device_put(params, sharding.param_shardings(mesh, params))
    return evaluator(params, batches, drawn(), with_coverage=with_coverage)


def slow_scores():
    """Returns the score of every item, for every user."""
    begins = np.maximum(log().offsets[targets().users], targets().target - MAX_LENGTH)
    hidden = [
        table()[log().items[begin:end]].sum(axis=0)
        for begin, end in zip(begins, targets().target, strict=True)
    ]
    return np.array(hidden) @ table()[1 : NUM_ITEMS + 1].T


def slow_ranks():
    """Ranks of every user by sorting out one item at a time, by protocol."""
    found = {"full": [], "full_keep": []} | {name: [] for name in drawn().names}
    for user, end, others in zip(*targets(), drawn().items, strict=True):
        begin, target = log().offsets[user], log().items[end]
        hidden = table()[log().items[max(begin, end - MAX_LENGTH) : end]].sum(axis=0)
        scores = table() @ hidden
        every_item, seen = set(range(1, NUM_ITEMS + 1)), set(log().items[begin:end])
        candidates = {"full": every_item - seen, "full_keep": every_item}
        candidates |= {n: set(row) - {0} for n, row in zip(drawn().names, others, strict=True)}
        for protocol, items in candidates.items():
            others = np.array([scores[i] for i in items if i != target])
            rank = 1 + np.sum(others > scores[target]) + np.sum(others == scores[target]) / 2
            is_missed = protocol == "full" and target in seen
            found[protocol].append(np.inf if is_missed else rank)
    return found


def by_protocol(ranks):
    return {"full": ranks.full, "full_keep": ranks.full_keep, **ranks.sampled}


def assert_same_ranks(ranks, expected):
    assert by_protocol(ranks).keys() == expected.keys()
    for protocol, found in by_protocol(ranks).items():
        np.testing.assert_array_equal(found, expected[protocol])


def test_all_protocols_and_the_loss():
    expected = slow_ranks()
    assert np.isinf(expected["full"]).any() and np.isfinite(expected["full"]).any()
    ranks = evaluate()
    assert_same_ranks(ranks, expected)
    logits = slow_scores()
    own = logits[np.arange(len(logits)), log().items[targets().target] - 1]
    np.testing.assert_allclose(ranks.loss, scipy.special.logsumexp(logits, 1) - own, rtol=1e-5)


def test_scores_that_are_no_logits_have_no_loss():
    assert evaluate(with_loss=False).loss is None


@pytest.mark.parametrize(
    ("batch_users", "mesh", "chunk"),
    [
        (1, (1, 1), NUM_ITEMS),
        (64, (1, 1), 7),
        (8, (8, 1), NUM_ITEMS),
        (32, (4, 2), 5),
        (16, (2, 4), NUM_ITEMS),
    ],
)
def test_ranks_do_not_depend_on_batches_chunks_and_devices(batch_users, mesh, chunk):
    assert_same_ranks(evaluate(batch_users, mesh, chunk=chunk), slow_ranks())


@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)])
def test_scores_may_come_without_a_table(mesh):
    def score(table, batch):
        hidden, table = encode_by_small_integers(table, batch)
        return hidden @ table[: NUM_ITEMS + 1].T, None

    ranks = evaluate(16, mesh, score, with_coverage=True)
    assert_same_ranks(ranks, slow_ranks())
    found, with_table = summarize(ranks), summarize(evaluate(8, with_coverage=True))
    assert found.pop("loss") == pytest.approx(with_table.pop("loss"))
    assert found == with_table


def slow_places():
    """Lists, for every protocol and user, the items in the order in which they are recommended."""
    found = {"full": [], "full_keep": []}
    for user, end in zip(*targets(), strict=True):
        begin = log().offsets[user]
        hidden = table()[log().items[max(begin, end - MAX_LENGTH) : end]].sum(axis=0)
        scores = table() @ hidden
        items = sorted(range(1, NUM_ITEMS + 1), key=lambda item: (-scores[item], item))
        seen = set(log().items[begin:end])
        found["full"].append([item for item in items if item not in seen])
        found["full_keep"].append(items)
    return found


@pytest.mark.parametrize(
    ("batch_users", "mesh", "chunk"), [(1, (1, 1), 64), (8, (1, 1), 9), (16, (4, 2), 64)]
)
def test_coverage_is_the_share_of_items_in_any_users_first_k(batch_users, mesh, chunk):
    ranks = evaluate(batch_users, mesh, with_coverage=True, chunk=chunk)
    assert_same_ranks(ranks, slow_ranks())
    found = summarize(ranks)
    for protocol, lists in slow_places().items():
        for k in (1, 5, 10, 20):
            covered = {item for items in lists for item in items[:k]}
            assert found[f"{protocol}/coverage@{k}"] == len(covered) / NUM_ITEMS
    assert 0 < found["full/coverage@1"] < found["full_keep/coverage@5"] < 1


def test_coverage_is_measured_where_asked_for():
    assert not any("coverage" in name for name in summarize(evaluate()))


def test_a_model_ranks_alike_on_every_mesh():
    config = ModelConfig(
        attention="dense", hidden_size=16, inner_size=16, num_layers=1, max_length=MAX_LENGTH
    )
    model = BlossomRec(config, NUM_ITEMS, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    one = evaluate(8, (1, 1), encode_last(graphdef), params)
    for mesh in [(2, 1), (4, 2)]:
        assert_same_ranks(evaluate(16, mesh, encode_last(graphdef), params), by_protocol(one))

    # The first user alone, without padding.
    user, end = targets().users[0], targets().target[0]
    history = log().items[log().offsets[user] : end][-MAX_LENGTH:]
    hidden = model(jnp.asarray(history)[None], jnp.arange(len(history))[None])[0, -1]
    scores = np.asarray(model.scores(hidden))
    assert one.full_keep[0] == 1 + (scores[1:] > scores[log().items[end]]).sum()


def test_the_item_table_may_be_split():
    mesh = sharding.make_mesh(4, 2)
    evaluator = Evaluator(encode_by_small_integers, num_items=NUM_ITEMS, mesh=mesh)
    batches = evaluation_batches(
        log(), targets(), max_length=MAX_LENGTH, batch_users=16, multiple_of=8
    )
    params = jax.device_put(table(), jax.NamedSharding(mesh, sharding.TABLE_ROWS))
    assert_same_ranks(evaluator(params, batches, drawn()), slow_ranks())


def test_one_program_a_shape():
    traced = []

    def encode(table, batch):
        traced.append(batch["item_ids"].shape + batch["seen"].shape)
        return encode_by_small_integers(table, batch)

    evaluate(4, (1, 1), encode)
    assert len(traced) == len(set(traced)) <= 4


def test_programs_compiled_ahead_are_those_that_run():
    traced = []

    def encode(table, batch):
        traced.append(batch["item_ids"].shape + batch["seen"].shape)
        return encode_by_small_integers(table, batch)

    mesh = sharding.make_mesh(4, 2)
    evaluator = Evaluator(encode, num_items=NUM_ITEMS, mesh=mesh)
    sizes = {"max_length": MAX_LENGTH, "batch_users": 16, "multiple_of": 8}
    place = sharding.replicated(mesh)
    params = jax.ShapeDtypeStruct(table().shape, jnp.float32, sharding=place)
    needed = evaluator.prepare(params, evaluation_shapes(log(), targets(), **sizes), (4, 10))
    num_programs = len(traced)
    assert needed > table().nbytes + 4 * NUM_ITEMS * 2  # the scores of a device's two users
    ranks = evaluator(
        jax.device_put(table(), place), evaluation_batches(log(), targets(), **sizes), drawn()
    )
    assert_same_ranks(ranks, slow_ranks())
    assert len(traced) == num_programs > 1


def test_more_users_a_batch_need_more_bytes():
    evaluator = Evaluator(
        encode_by_small_integers, num_items=NUM_ITEMS, mesh=sharding.make_mesh(8, 1)
    )
    shapes = [BatchShape(users, 8, 32, 32) for users in (8, 80, 8000)]
    needed = [evaluator.prepare(table(), [shape], (4, 10)) for shape in shapes]
    assert needed[0] < needed[1] < needed[2]
    assert needed[2] > 1000 * NUM_ITEMS * 4


def test_missing_users_are_noticed():
    evaluator = Evaluator(
        encode_by_small_integers,
        num_items=NUM_ITEMS,
        mesh=sharding.make_mesh(1, 1, devices=jax.devices()[:1]),
    )
    batches = list(evaluation_batches(log(), targets(), max_length=MAX_LENGTH, batch_users=8))
    with pytest.raises(ValueError, match="leave out 8 of 47 users"):
        evaluator(table(), batches[1:], drawn())


def test_ranks_of_some_users():
    ranks = evaluate(with_coverage=True)
    chosen = np.arange(len(ranks.full)) % 3 == 0
    some = ranks.of_users(chosen)
    expected = {name: np.array(values)[chosen] for name, values in slow_ranks().items()}
    assert_same_ranks(some, expected)
    assert not some.best_places
    np.testing.assert_array_equal(some.num_seen, ranks.num_seen[chosen])


def test_the_compiler_knows_the_options_for_a_gpu():
    lowered = jax.jit(jnp.sin).lower(jnp.ones(3))
    lowered.compile(compiler_options=_GPU_OPTIONS)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        lowered.compile(compiler_options={"no_such_option": "0"})
