"""Opening data sets by name: prepared once, reused, of the sizes known of the real files."""

import os

import numpy as np
import pytest

from blossom_jax.data import leave_one_out, load_dataset
from blossom_jax.data.interactions import save
from blossom_jax.data.load import default_cache_dir
from blossom_jax.data.registry import DATASETS, Dataset, File
from blossom_jax.errors import UserError


@pytest.fixture
def log_file(tmp_path, monkeypatch):
    """A data set "small", whose file runs newest first."""
    file = File("small.txt", "user_item_time", newest_first=True)
    monkeypatch.setitem(DATASETS, "small", Dataset((file,), "be kind"))
    monkeypatch.setenv("BLOSSOM_DATA", str(tmp_path))
    path = tmp_path / "small.txt"
    path.write_text("u d 9\nu c 5\nu b 5\nu a 1\nv a 3\n")
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_newest_first_file_is_read_from_its_end(log_file, cache):
    log = load_dataset("small", cache_dir=cache)
    assert log.user_ids.tolist() == ["v", "u"]
    assert log.item_ids[log.items - 1].tolist() == ["a", "a", "b", "c", "d"]
    assert log.card["source"] == "small.txt" and log.card["terms"] == "be kind"


def test_prepared_copy_is_reused_by_content_and_filters(log_file, cache, monkeypatch):
    first = load_dataset("small", cache_dir=cache)
    assert first.directory.startswith(str(cache / "prepared"))
    other = load_dataset("small", cache_dir=cache, repeats="latest")
    assert other.directory != first.directory
    with monkeypatch.context() as patch:
        patch.setattr("blossom_jax.data.load.prepare", None)
        again = load_dataset("small", cache_dir=cache)
    assert (again.directory, again.content_hash) == (first.directory, first.content_hash)
    log_file.write_text("u a 1\nu b 2\nu c 3\n")
    assert load_dataset("small", cache_dir=cache).num_events == 3


def test_terms_are_printed_once(log_file, cache, capsys):
    load_dataset("small", cache_dir=cache)
    assert "small: be kind" in capsys.readouterr().out
    load_dataset("small", cache_dir=cache, repeats="latest")
    assert "be kind" not in capsys.readouterr().out


def test_cache_dir_default(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOSSOM_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("BLOSSOM_CACHE")
    assert default_cache_dir().parts[-2:] == (".cache", "blossom_jax")


def test_synthetic_needs_nothing(cache, monkeypatch):
    monkeypatch.delenv("BLOSSOM_DATA", raising=False)
    log = load_dataset("synthetic", cache_dir=cache)
    assert log.num_users == 2000 and (np.diff(log.offsets) == 128).all()
    answers = log.item_ids[log.items[leave_one_out(log).test.target] - 1]
    assert np.char.startswith(answers, "answer").mean() == 0.5


def test_custom_folder(log_file, cache, tmp_path):
    made = load_dataset("small", cache_dir=cache, repeats="latest")
    save(made, tmp_path / "mine")
    log = load_dataset("custom", path=tmp_path / "mine")
    assert (log.name, log.content_hash) == ("small", made.content_hash)
    assert load_dataset("custom", path=tmp_path / "mine", repeats="latest").num_events == 5
    with pytest.raises(UserError, match="prepared with min_user_events=1, not 5; prepare it again"):
        load_dataset("custom", path=tmp_path / "mine", min_user_events=5)


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("movies", "", "unknown data set 'movies'; known: ml_1m, .*, custom"),
        ("custom", "", "needs data.path=DIR"),
        ("custom", "nowhere", "nowhere is not a prepared log; make one with: python -m"),
    ],
)
def test_load_refuses(name, path, words, cache):
    with pytest.raises(UserError, match=words):
        load_dataset(name, path=path, cache_dir=cache)


# Users, items and events of each file, then of its 5-core.
KNOWN = {
    "ml_1m": ((6040, 3416, 999611), (6040, 3416, 999611)),
    "ml_100k": ((943, 1682, 100000), (943, 1349, 99287)),
    "ml_latest_small": ((610, 9724, 100836), (610, 3650, 90274)),
    "amazon_beauty": ((22363, 12101, 198502), (22363, 12101, 198502)),
    "amazon_sports": ((35598, 18357, 296337), (35598, 18357, 296337)),
    "amazon_toys": ((19412, 11924, 167597), (19412, 11924, 167597)),
    "amazon_video_games": ((31013, 23715, 287107), (24303, 10672, 231780)),
    "yelp": ((30431, 20033, 316354), (30431, 20033, 316354)),
    "gowalla_1000": ((1000, 24209, 157251), (997, 8253, 123018)),
    "gowalla_nyc": ((7115, 21509, 138957), (3456, 6568, 101687)),
}


@pytest.mark.real_data
@pytest.mark.skipif(not os.environ.get("BLOSSOM_DATA"), reason="BLOSSOM_DATA names no folder")
@pytest.mark.parametrize("name", KNOWN)
def test_real_files_have_the_known_sizes(name, cache):
    for least, size in zip((1, 5), KNOWN[name], strict=True):
        options = {"min_user_events": least, "min_item_events": least}
        log = load_dataset(name, cache_dir=cache, **options)
        assert (log.num_users, log.num_items, log.num_events) == size
        if log.times is not None:
            inside = np.ones(log.num_events - 1, bool)
            inside[log.offsets[1:-1] - 1] = False
            assert (np.diff(log.times)[inside] >= 0).all()


@pytest.mark.real_data
@pytest.mark.skipif(not os.environ.get("BLOSSOM_DATA"), reason="BLOSSOM_DATA names no folder")
@pytest.mark.parametrize(
    ("name", "repeated", "unseen"),
    [
        ("yelp", 0.067, 0.002),
        ("gowalla_1000", 0.454, 0.074),
        ("gowalla_nyc", 0.249, 0.053),
        ("amazon_video_games", 0.0, 0.038),
        ("ml_1m", 0.0, 0.0),
    ],
)
def test_real_files_have_the_known_shares(name, repeated, unseen, cache):
    card = leave_one_out(load_dataset(name, cache_dir=cache)).card["test"]
    assert card["repeated_target_share"] == pytest.approx(repeated, abs=5e-4)
    assert card["target_unseen_in_training_share"] == pytest.approx(unseen, abs=5e-4)
