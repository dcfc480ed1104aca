"""Building, saving and opening a prepared log."""

import collections
import json
import os
import pickle

import hypothesis
import numpy as np
import polars as pl
import pytest
from hypothesis import strategies as st

from blossom_jax.data import coding, event_parts, ragged
from blossom_jax.data.interactions import from_table, load, prepare, save
from blossom_jax.errors import UserError


def _table(rows):
    names = ["user", "item", "time"][: len(rows[0])]
    return pl.DataFrame(rows, schema=names, orient="row")


def _log(rows, **options):
    return from_table(_table(rows), name="small", **options)


def _histories(log):
    """Returns {user: [item, ...]} in raw ids."""
    raw = log.item_ids[np.asarray(log.items) - 1]
    parts = np.split(raw, log.offsets[1:-1])
    return {user: part.tolist() for user, part in zip(log.user_ids.tolist(), parts, strict=True)}


ROWS = [
    ("b", "p", 5),
    ("a", "q", 3),
    ("b", "q", 1),
    ("a", "p", 3),
    ("a", "r", 2),
    ("b", "s", 5),
    ("c", "p", 9),
]


def test_histories_are_in_time_order_and_ties_keep_file_order():
    log = _log(ROWS)
    assert _histories(log) == {"b": ["q", "p", "s"], "a": ["r", "q", "p"], "c": ["p"]}
    assert log.times.tolist() == [1, 5, 5, 2, 3, 3, 9]
    assert log.offsets.tolist() == [0, 3, 6, 7]


def test_ids_are_numbered_by_first_appearance():
    log = _log(ROWS)
    assert log.user_ids.tolist() == ["b", "a", "c"]
    assert log.item_ids.tolist() == ["p", "q", "r", "s"]
    assert log.items.dtype == np.int32
    assert log.items.tolist() == [2, 1, 4, 3, 2, 1, 1]
    assert (log.num_users, log.num_items, log.num_events) == (3, 4, 7)


def test_without_times_file_order_counts():
    log = _log([row[:2] for row in ROWS])
    assert log.times is None
    assert _histories(log) == {"b": ["p", "q", "s"], "a": ["q", "p", "r"], "c": ["p"]}


@pytest.mark.parametrize(
    ("repeats", "kept"),
    [("keep", "xxyxzzx"), ("drop_consecutive", "xyxzx"), ("latest", "yzx")],
)
def test_repeats_policy(repeats, kept):
    rows = [("u", item, time) for time, item in enumerate("xxyxzzx")]
    log = _log([*rows, ("v", "x", 0)], repeats=repeats)
    assert _histories(log) == {"u": list(kept), "v": ["x"]}
    assert log.card["filters"]["repeats"] == repeats


def test_repeats_policy_holds_after_the_k_core():
    rows = [("u", item, t) for t, item in enumerate("xyxzzw")] + [("v", i, 0) for i in "xzw"]
    log = _log(rows, repeats="drop_consecutive", min_item_events=2)
    assert _histories(log) == {"u": ["x", "z", "w"], "v": ["x", "z", "w"]}


def test_item_repeated_a_thousand_times():
    rows = [("u", "x", t) for t in range(1000)] + [("v", i, 0) for i in "abc"]
    assert _log(rows).num_events == 1003
    assert _histories(_log(rows, repeats="latest")) == {"u": ["x"], "v": ["a", "b", "c"]}


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
    table = _table(events)
    options = {"min_user_events": least_user, "min_item_events": least_item}
    if max(map(len, expected.values()), default=0) < 3:
        with pytest.raises(UserError, match="no user is left with 3 events"):
            from_table(table, name="small", **options)
    else:
        assert _histories(from_table(table, name="small", **options)) == expected


def test_card_has_the_size_after_each_filter():
    rows = [("u", i, t) for t, i in enumerate("abcd")] + [("v", i, 0) for i in "abc"]
    log = _log([*rows, ("w", "a", 0)], min_user_events=3, min_item_events=2, card={"source": "s"})
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
        _log(rows, min_item_events=2)
    message = str(error.value)
    assert "2 users, 4 items and 6 events" in message
    assert "min_item_events=2 dropped 0 users, 2 items and 2 events" in message
    with pytest.raises(UserError, match="no filter dropped anything"):
        _log(rows[-2:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repeats": "first"}, "repeats='first' is not one of keep"),
        ({"min_user_events": 0}, "min_user_events=0"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        _log(ROWS, **options)


def _assert_same_content(log, other):
    for field in ("items", "times", "offsets", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(log, field), getattr(other, field))
    assert (log.content_hash, log.card) == (other.content_hash, other.card)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("repeats", ["keep", "drop_consecutive", "latest"])
def test_log_in_many_parts_on_disk_is_the_log_in_one(monkeypatch, tmp_path, repeats, newest_first):
    rng = np.random.default_rng(0)
    skewed = ((n * rng.random(400) ** 3).astype(int).tolist() for n in (20, 30, 100))
    table = _table([(f"u{u}", f"i{i}", t) for u, i, t in zip(*skewed, strict=True)])
    options = {"repeats": repeats, "newest_first": newest_first, "name": "log"}
    options |= {"min_user_events": 6, "min_item_events": 4}
    whole = from_table(table, **options)
    monkeypatch.setattr(event_parts, "PART_EVENTS", 50)
    monkeypatch.setattr(coding, "_BATCH_EVENTS", 7)
    table.write_parquet(tmp_path / "log.parquet")
    scanned = pl.scan_parquet(tmp_path / "log.parquet")
    in_parts = prepare(scanned, tmp_path / "log", **options)
    _assert_same_content(in_parts, whole)
    assert sorted(os.listdir(tmp_path)) == ["log", "log.parquet"]
    assert 0 < whole.num_events < 400


def test_newest_first_reverses_file_order():
    reverse = _table(ROWS).reverse()
    _assert_same_content(from_table(reverse, name="small", newest_first=True), _log(ROWS))


def test_fractions_of_a_second_count_in_the_order():
    rows = [("u", "b", 1_500_000), ("u", "a", 1_200_000), ("u", "c", 2_000_000)]
    table = _table(rows).with_columns(pl.col("time").cast(pl.Datetime("us")))
    log = from_table(table, name="small")
    assert _histories(log) == {"u": ["a", "b", "c"]} and log.times.tolist() == [1, 1, 2]


@pytest.mark.parametrize("slab", [1, 7, 2**20])
def test_stretches_are_read_a_slab_at_a_time(monkeypatch, slab):
    monkeypatch.setattr(ragged, "_SLAB", slab)
    log = _log(ROWS)
    begin, end = np.array([0, 1, 6]), np.array([3, 1, 7])
    parts = list(log.stretches(begin, end))
    owner, items = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert owner.tolist() == [0, 0, 0, 2]
    assert items.tolist() == [*log.items[:3], log.items[6]]
    assert len(parts) == {1: 2, 7: 1, 2**20: 1}[slab]


def test_id_with_a_line_break_is_refused():
    with pytest.raises(UserError, match="line break"):
        _log([("u", "x\ny", 1)] * 3)


def _assert_equal(log, other):
    assert log.name == other.name
    for field in ("items", "times", "offsets", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(log, field), getattr(other, field))
    assert log.content_hash == other.content_hash
    assert log.card == other.card


@pytest.mark.parametrize("columns", [2, 3])
def test_saved_log_comes_back_mapped(tmp_path, columns):
    rows = [*ROWS, ("a", "tab\t é \r", 7)]
    log = _log([row[:columns] for row in rows])
    save(log, tmp_path / "new" / "log")
    loaded = load(tmp_path / "new" / "log")
    assert isinstance(loaded.items, np.memmap)
    _assert_equal(log, loaded)


def test_content_hash_depends_on_content_alone():
    same = from_table(_table(ROWS), name="other", card={"source": "elsewhere"})
    assert same.content_hash == _log(ROWS).content_hash == same.card["content_hash"]
    assert _log([(f"{u}2", i, t) for u, i, t in ROWS]).content_hash != same.content_hash
    assert _log([(u, i, t + 1) for u, i, t in ROWS]).content_hash != same.content_hash


def test_loaded_log_is_pickled_as_its_directory(tmp_path):
    rows = [(f"u{k % 50}", f"i{k % 70}", k) for k in range(5000)]
    log = _log(rows)
    _assert_equal(log, pickle.loads(pickle.dumps(log)))
    save(log, tmp_path / "log")
    loaded = load(tmp_path / "log")
    pickled = pickle.dumps(loaded)
    assert len(pickled) < 500
    _assert_equal(loaded, pickle.loads(pickled))


def test_save_replaces_a_prepared_log_and_nothing_else(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    save(_log(ROWS), folder)
    longer = _log([*ROWS, ("c", "q", 10)])
    save(longer, folder)
    assert load(folder).num_events == 8
    assert os.listdir(tmp_path) == ["log"]
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_text("cat")
    with pytest.raises(UserError, match="not empty and not a prepared log"):
        save(longer, foreign)
    assert os.listdir(foreign) == ["cat.jpg"]


def test_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "log"
    save(_log(ROWS), folder)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(_log([*ROWS, ("c", "q", 10)]), folder)
    assert os.listdir(tmp_path) == ["log"]
    assert load(folder).num_events == 7


def test_folder_that_is_not_a_prepared_log(tmp_path):
    with pytest.raises(UserError, match=r"is not a prepared log; .*experiments\.prepare_data"):
        load(tmp_path)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: _cut(folder / "items.npy"),
        lambda folder: (folder / "users.txt").unlink(),
        lambda folder: (folder / "users.txt").write_text("a\n"),
        lambda folder: (folder / "card.json").write_text("{}"),
        lambda folder: np.save(folder / "times.npy", np.zeros(3, np.int64)),
    ],
)
def test_damaged_log_is_refused(tmp_path, spoil):
    save(_log(ROWS), tmp_path / "log")
    spoil(tmp_path / "log")
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "log")
