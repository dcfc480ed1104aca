"""Recommendations: the scores are the model's, the ids raw, and nothing forbidden is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import NUM_ITEMS, raw_ids, tiny_model

from blossom_jax.errors import UserError
from blossom_jax.recommender import Recommender

RNG = np.random.default_rng(1)
LENGTHS = [1, 16, 20, 70]
HISTORIES = [[raw_ids()[k] for k in RNG.integers(0, 25, length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def recommender():
    return Recommender(tiny_model(), batch_users=4)


def scores_of(history, encode):
    """Scores the items after one history the slow way: alone, in a row of its own length."""
    numbers = [int(raw) // 3 for raw in history][-20:]
    return np.asarray(encode(jnp.array([numbers]), jnp.arange(len(numbers))[None]))[1:]


def test_scores_are_the_models_whatever_the_length_and_the_batch(recommender):
    model = nnx.merge(recommender.model.graphdef, recommender.model.params)
    encode = jax.jit(lambda items, positions: model.scores(model(items, positions)[0, -1]))
    found = recommender.recommend(HISTORIES, NUM_ITEMS, exclude_seen=False)
    for history, ranked in zip(HISTORIES, found, strict=True):
        expected = scores_of(history, encode)
        ids, scores = zip(*ranked, strict=True)
        assert list(ids) == [raw_ids()[i] for i in np.argsort(-expected, kind="stable")]
        np.testing.assert_allclose(scores, -np.sort(-expected), rtol=1e-5, atol=1e-5)


def test_one_program_for_each_bucket(recommender):
    recommender.recommend(HISTORIES, 3)
    before = recommender._top_items._best._cache_size()
    recommender.recommend([[*history[1:], "9"] for history in HISTORIES], 9, exclude=["3"])
    recommender.recommend(HISTORIES * 2, 3, exclude_seen=False)
    assert recommender._top_items._best._cache_size() == before


def test_seen_items_are_left_out_even_those_beyond_max_length(recommender):
    found = recommender.recommend(HISTORIES, NUM_ITEMS)
    for history, ranked in zip(HISTORIES, found, strict=True):
        assert {raw for raw, _ in ranked} == set(raw_ids()) - set(history)


def test_exclude_and_allow(recommender):
    (whole,) = recommender.recommend(HISTORIES[:1], NUM_ITEMS)
    few = [raw for raw, _ in whole[5:9]]
    (ranked,) = recommender.recommend(HISTORIES[:1], 10, allow=few, exclude=few[:1])
    assert ranked == whole[6:9]


def test_whole_numbers_stand_for_their_digits(recommender):
    texts = recommender.recommend(HISTORIES, 3)
    numbers = [[int(raw) for raw in history] for history in HISTORIES]
    assert recommender.recommend(numbers, 3) == texts


@pytest.mark.parametrize("history", [[], ["1", "no such item"]])
def test_who_has_no_known_item_gets_popular_ones_and_is_told(recommender, history, caplog):
    ranked, other = recommender.recommend([history, HISTORIES[0]], 7, exclude=["21", "no"])
    counts = dict(ranked)
    assert list(counts.values()) == [6, 6, 6, 6, 5, 5, 5]  # and 21 would have been the first
    assert "21" not in counts and list(counts)[0] == "42"
    assert "1 of 2 histories hold no known item: they get popular items" in caplog.text
    assert "skipped in exclude: 1 id(s) that the model does not know: 'no'" in caplog.text
    assert ("'no such item'" in caplog.text) == bool(history)
    assert other == recommender.recommend([HISTORIES[0]], 7, exclude=["21"])[0]


def test_unknown_ids_are_skipped(recommender):
    with_unknown = ["1", *HISTORIES[1][:2], "x", *HISTORIES[1][2:]]
    plain, answer = recommender.answer([HISTORIES[1], with_unknown])
    assert answer.items == plain.items and answer.unknown == ["1", "x"] and not answer.is_popular


def test_more_than_the_catalogue_is_the_catalogue(recommender):
    (ranked,) = recommender.recommend([["3"]], 10**9, exclude_seen=False)
    assert len(ranked) == NUM_ITEMS


def test_no_history_at_all(recommender):
    assert recommender.recommend([]) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"allow": ["x"]}, "no id of allow is in the catalogue"),
        ({"allow": []}, "no id of allow is in the catalogue"),
        ({"allow": "237"}, "allow must be a list of raw ids, got '237'"),
        ({"exclude": "237"}, "exclude must be a list of raw ids, got '237'"),
    ],
)
def test_what_cannot_be_answered_is_refused(recommender, options, words):
    with pytest.raises(UserError, match=words):
        recommender.recommend(HISTORIES, **options)


@pytest.mark.parametrize("histories", [["31"], "3", [["3"], "1"]])
def test_a_string_is_no_history(recommender, histories):
    with pytest.raises(UserError, match="histories must be lists of raw ids, one a user, got '"):
        recommender.recommend(histories)


def test_a_batch_without_rows_is_refused():
    with pytest.raises(
        UserError, match=r"batch_users must be a positive multiple of the 1 .*, got 0"
    ):
        Recommender(tiny_model(), batch_users=0)


def test_events_one_by_one_give_what_the_whole_history_gives(recommender, caplog):
    history = HISTORIES[1]
    state = recommender.start(["no such item", *history[:3]])
    assert "skipped in history: 1 id(s)" in caplog.text
    for raw in history[3:]:
        state, scores = recommender.step(state, raw)
    (expected,) = recommender.recommend([history], 5)
    found = recommender.best(scores, 5, exclude=history)
    assert [raw for raw, _ in found] == [raw for raw, _ in expected]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], rtol=1e-5)
    with pytest.raises(UserError, match="does not know item 'x'"):
        recommender.step(state, "x")
    assert recommender.step(state, 3)[1].shape == (NUM_ITEMS + 1,)


def test_max_events_is_what_states_keep():
    recommender = Recommender(tiny_model(), max_events=6)
    assert recommender.incremental.max_events == 6
