"""Preparing a log: the order of events, numbers of ids, filters, and the card."""

import collections
import json
import os

import hypothesis
import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st
from small_log import ROWS, as_table, assert_same, small_log

from blossom_jax.data import coding, event_parts
from blossom_jax.data.prepare import from_table, prepare
from blossom_jax.errors import UserError


def _histories(log):
    """Returns {user: [item, ...]} in raw ids."""
    raw = log.item_ids[np.asarray(log.items) - 1]
    parts = np.split(raw, log.offsets[1:-1])
    return {user: part.tolist() for user, part in zip(log.user_ids.tolist(), parts, strict=True)}


def test_histories_are_in_time_order_and_ties_keep_file_order():
    log = small_log(ROWS)
    assert _histories(log) == {"b": ["q", "p", "s"], "a": ["r", "q", "p"], "c": ["p"]}
    assert log.times.tolist() == [1, 5, 5, 2, 3, 3, 9]
    assert log.offsets.tolist() == [0, 3, 6, 7]


def test_ids_are_numbered_by_first_appearance():
    log = small_log(ROWS)
    assert log.user_ids.tolist() == ["b", "a", "c"]
    assert log.item_ids.tolist() == ["p", "q", "r", "s"]
    assert log.items.dtype == np.int32
    assert log.items.tolist() == [2, 1, 4, 3, 2, 1, 1]
    assert (log.num_users, log.num_items, log.num_events) == (3, 4, 7)


def test_a_table_without_rows_is_refused():
    table = pl.DataFrame(schema={"user": pl.String, "item": pl.String})
    with pytest.raises(UserError, match="no user is left with 3 events"):
        from_table(table, name="empty")


def test_without_times_file_order_counts():
    log = small_log([row[:2] for row in ROWS])
    assert log.times is None
    assert _histories(log) == {"b": ["p", "q", "s"], "a": ["q", "p", "r"], "c": ["p"]}


@pytest.mark.parametrize(
    ("repeats", "kept"),
    [("keep", "xxyxzzx"), ("drop_consecutive", "xyxzx"), ("latest", "yzx")],
)
def test_repeats_policy(repeats, kept):
    rows = [("u", item, time) for time, item in enumerate("xxyxzzx")]
    log = small_log([*rows, ("v", "x", 0)], repeats=repeats)
    assert _histories(log) == {"u": list(kept), "v": ["x"]}
    assert log.card["filters"]["repeats"] == repeats


def test_repeats_policy_holds_after_the_k_core():
    rows = [("u", item, t) for t, item in enumerate("xyxzzw")] + [("v", i, 0) for i in "xzw"]
    log = small_log(rows, repeats="drop_consecutive", min_item_events=2)
    assert _histories(log) == {"u": ["x", "z", "w"], "v": ["x", "z", "w"]}


def test_item_repeated_a_thousand_times():
    rows = [("u", "x", t) for t in range(1000)] + [("v", i, 0) for i in "abc"]
    assert small_log(rows).num_events == 1003
    assert _histories(small_log(rows, repeats="latest")) == {"u": ["x"], "v": ["a", "b", "c"]}


def _naive_core(events, least_user, least_item):
    while True:
        users = collections.Counter(u for u, _ in events)
        items = collections.Counter(i for _, i in events)
        kept = [e for e in events if users[e[0]] >= least_user and items[e[1]] >= least_item]
        if kept == events:
            return kept
        events = kept


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_k_core_equals_the_naive_one(events, least_user, least_item):
    expected = collections.defaultdict(list)
    for user, item in _naive_core(events, least_user, least_item):
        expected[str(user)].append(str(item))
    table = as_table(events)
    options = {"min_user_events": least_user, "min_item_events": least_item}
    if max(map(len, expected.values()), default=0) < 3:
        with pytest.raises(UserError, match="no user is left with 3 events"):
            from_table(table, name="small", **options)
    else:
        assert _histories(from_table(table, name="small", **options)) == expected


def test_card_has_the_size_after_each_filter():
    rows = [("u", i, t) for t, i in enumerate("abcd")] + [("v", i, 0) for i in "abc"]
    log = small_log(
        [*rows, ("w", "a", 0)], min_user_events=3, min_item_events=2, card={"source": "s"}
    )
    assert log.card["source"] == "s"
    assert log.card["sizes"] == [
        {"filter": "read", "users": 3, "items": 4, "events": 8},
        {"filter": "min_user_events=3", "users": 2, "items": 4, "events": 7},
        {"filter": "min_item_events=2", "users": 2, "items": 3, "events": 6},
    ]
    json.dumps(log.card)


def test_too_short_says_what_dropped_how_many():
    rows = [("u", i, t) for t, i in enumerate("abcd")] + [("v", "a", 0), ("v", "b", 1)]
    with pytest.raises(UserError) as error:
        small_log(rows, min_item_events=2)
    message = str(error.value)
    assert "2 users, 4 items and 6 events" in message
    assert "min_item_events=2 dropped 0 users, 2 items and 2 events" in message
    with pytest.raises(UserError, match="no filter dropped anything"):
        small_log(rows[-2:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repeats": "first"}, "repeats='first' is not one of keep"),
        ({"min_user_events": 0}, "min_user_events=0"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        small_log(ROWS, **options)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("repeats", ["keep", "drop_consecutive", "latest"])
def test_log_in_many_parts_on_disk_is_the_log_in_one(monkeypatch, tmp_path, repeats, newest_first):
    rng = np.random.default_rng(0)
    skewed = ((n * rng.random(400) ** 3).astype(int).tolist() for n in (20, 30, 100))
    table = as_table([(f"u{u}", f"i{i}", t) for u, i, t in zip(*skewed, strict=True)])
    options = {"repeats": repeats, "newest_first": newest_first, "name": "log"}
    options |= {"min_user_events": 6, "min_item_events": 4}
    whole = from_table(table, **options)
    monkeypatch.setattr(event_parts, "PART_EVENTS", 50)
    monkeypatch.setattr(coding, "_BATCH_EVENTS", 7)
    monkeypatch.setattr(coding, "_MOST_UNMERGED", 5)
    table.write_parquet(tmp_path / "log.parquet")
    scanned = pl.scan_parquet(tmp_path / "log.parquet")
    in_parts = prepare(scanned, tmp_path / "log", **options)
    assert_same(in_parts, whole)
    assert sorted(os.listdir(tmp_path)) == ["log", "log.parquet"]
    assert 0 < whole.num_events < 400


def test_newest_first_reverses_file_order():
    reverse = as_table(ROWS).reverse()
    assert_same(from_table(reverse, name="small", newest_first=True), small_log(ROWS))


def test_fractions_of_a_second_count_in_the_order():
    rows = [("u", "b", 1_500_000), ("u", "a", 1_200_000), ("u", "c", 2_000_000)]
    table = as_table(rows).with_columns(pl.col("time").cast(pl.Datetime("us")))
    log = from_table(table, name="small")
    assert _histories(log) == {"u": ["a", "b", "c"]} and log.times.tolist() == [1, 1, 2]


def test_id_with_a_line_break_is_refused():
    with pytest.raises(UserError, match="line break"):
        small_log([("u", "x\ny", 1)] * 3)
