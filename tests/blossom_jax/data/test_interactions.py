"""A prepared log: reading it, its hash, and the folder that it is saved in."""

import json
import os
import pickle

import numpy as np
import pytest
from small_log import ROWS, as_table, assert_same, small_log

from blossom_jax.data import ragged
from blossom_jax.data.interactions import load, save
from blossom_jax.data.prepare import from_table
from blossom_jax.errors import UserError


@pytest.mark.parametrize("slab", [1, 7, 2**20])
def test_stretches_are_read_a_slab_at_a_time(monkeypatch, slab):
    monkeypatch.setattr(ragged, "_SLAB", slab)
    log = small_log(ROWS)
    begin, end = np.array([0, 1, 6]), np.array([3, 1, 7])
    parts = list(log.stretches(begin, end))
    owner, items = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert owner.tolist() == [0, 0, 0, 2]
    assert items.tolist() == [*log.items[:3], log.items[6]]
    assert len(parts) == {1: 2, 7: 1, 2**20: 1}[slab]


@pytest.mark.parametrize("columns", [2, 3])
def test_saved_log_comes_back_mapped(tmp_path, columns):
    rows = [*ROWS, ("a", "tab\t é \r", 7)]
    log = small_log([row[:columns] for row in rows])
    save(log, tmp_path / "new" / "log")
    loaded = load(tmp_path / "new" / "log")
    assert isinstance(loaded.items, np.memmap)
    assert_same(log, loaded)


def test_content_hash_depends_on_content_alone():
    same = from_table(as_table(ROWS), name="other", card={"source": "elsewhere"})
    assert same.content_hash == small_log(ROWS).content_hash == same.card["content_hash"]
    assert small_log([(f"{u}2", i, t) for u, i, t in ROWS]).content_hash != same.content_hash
    assert small_log([(u, i, t + 1) for u, i, t in ROWS]).content_hash != same.content_hash


def test_loaded_log_is_pickled_as_its_directory(tmp_path):
    rows = [(f"u{k % 50}", f"i{k % 70}", k) for k in range(5000)]
    log = small_log(rows)
    assert_same(log, pickle.loads(pickle.dumps(log)))
    save(log, tmp_path / "log")
    loaded = load(tmp_path / "log")
    pickled = pickle.dumps(loaded)
    assert len(pickled) < 500
    assert_same(loaded, pickle.loads(pickled))


def test_save_replaces_a_prepared_log_and_nothing_else(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    save(small_log(ROWS), folder)
    longer = small_log([*ROWS, ("c", "q", 10)])
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
    save(small_log(ROWS), folder)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(small_log([*ROWS, ("c", "q", 10)]), folder)
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
        lambda folder: np.save(folder / "items.npy", np.load(folder / "items.npy") % 2 + 1),
    ],
)
def test_damaged_log_is_refused(tmp_path, spoil):
    save(small_log(ROWS), tmp_path / "log")
    spoil(tmp_path / "log")
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "log")
