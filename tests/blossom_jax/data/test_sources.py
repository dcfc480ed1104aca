"""Finding, fetching and checking files; no test here needs a network."""

import gzip
import hashlib
import lzma
import zipfile

import pytest

from blossom_jax.data.formats import FORMATS
from blossom_jax.data.registry import DATASETS, File, Package, Url
from blossom_jax.data.sources import find_or_download
from blossom_jax.errors import UserError

CONTENT = b"1 1\n1 2\n1 3\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REFUSED = Url("http://127.0.0.1:9/log.txt")


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("BLOSSOM_DATA", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def _file(*sources, sha256=SHA256, name="log.txt"):
    return File(name, "user_item", sha256, sources)


def _put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(content))
    return path


def _zip(path, member, content=CONTENT):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def _files_under(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("place", ["data", "cache/downloads"])
@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_file_at_hand_is_found(tmp_path, cache, place, suffix):
    _put(tmp_path / place / f"log.txt{suffix}")
    found = find_or_download([_file()], cache)
    assert found.path.read_bytes() == CONTENT
    assert found.sha256 == SHA256


def test_data_folder_comes_before_cache_and_both_before_sources(data_folder, cache):
    _put(cache / "downloads" / "log.txt", b"cached")
    _put(data_folder / "log.txt", b"mine")
    file = _file(REFUSED, sha256="")
    assert find_or_download([file], cache).path.read_bytes() == b"mine"
    (data_folder / "log.txt").unlink()
    assert find_or_download([file], cache).path.read_bytes() == b"cached"


def test_preferred_alternative_is_used_if_at_hand(data_folder, cache):
    preferred, other = _file(name="a.txt"), _file(name="b.txt")
    _put(data_folder / "b.txt")
    assert find_or_download([preferred, other], cache).file == other
    _put(data_folder / "a.txt.xz")
    assert find_or_download([preferred, other], cache).file == preferred


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_wrong_content_is_refused_and_leaves_nothing(data_folder, cache, suffix):
    path = _put(data_folder / f"log.txt{suffix}", b"other")
    with pytest.raises(UserError) as error:
        find_or_download([_file()], cache)
    got = hashlib.sha256(b"other").hexdigest()
    assert all(word in str(error.value) for word in (str(path), SHA256, got))
    assert not _files_under(cache)


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_damaged_archive_is_named_and_leaves_nothing(data_folder, cache, suffix):
    path = _put(data_folder / f"log.txt{suffix}")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"log.txt{suffix} is damaged"):
        find_or_download([_file()], cache)
    assert not _files_under(cache)


def test_data_folder_must_be_a_folder(monkeypatch, cache):
    monkeypatch.setenv("BLOSSOM_DATA", "nowhere/at/all")
    with pytest.raises(UserError, match="BLOSSOM_DATA=nowhere/at/all is not a folder"):
        find_or_download([_file()], cache)


def test_sources_are_tried_in_order_until_one_has_the_right_content(tmp_path, cache):
    wrong = Url(_put(tmp_path / "web" / "wrong.txt", b"login page").as_uri())
    right = Url(_put(tmp_path / "web" / "right.txt.gz").as_uri())
    file = _file(REFUSED, wrong, right)
    found = find_or_download([file], cache)
    assert found.path == cache / "downloads" / "log.txt"
    assert found.path.read_bytes() == CONTENT
    (tmp_path / "web" / "right.txt.gz").unlink()
    assert find_or_download([file], cache) == found


def test_member_of_a_zip_archive(tmp_path, cache):
    url = _zip(tmp_path / "all.zip", "in/log.txt").as_uri()
    assert find_or_download([_file(Url(url, "in/log.txt"))], cache).sha256 == SHA256
    with pytest.raises(UserError, match="it holds no other.txt"):
        find_or_download([_file(Url(url, "other.txt"), name="new.txt")], cache)


def test_unpinned_download_is_recorded_once_and_checked_ever_after(tmp_path, cache, capsys):
    url = Url(_zip(tmp_path / "all.zip", "log.txt").as_uri(), "log.txt")
    file = _file(url, sha256="")
    path = find_or_download([file], cache).path
    assert f"recorded {SHA256}" in capsys.readouterr().out
    archive = hashlib.sha256((tmp_path / "all.zip").read_bytes()).hexdigest()
    record = path.with_name("log.txt.sha256").read_text()
    assert record == f"{SHA256}  log.txt\n{archive}  {url}\n"
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match=f"expected sha256 {SHA256}"):
        find_or_download([file], cache)


def test_file_of_a_python_package(tmp_path, cache, monkeypatch):
    wheel = tmp_path / "wheels" / "logpackage-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("logpackage/log.txt", CONTENT)
        metadata = "Metadata-Version: 2.1\nName: logpackage\nVersion: 1.0\nRequires-Dist: absent\n"
        archive.writestr("logpackage-1.0.dist-info/METADATA", metadata)
        archive.writestr("logpackage-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("logpackage-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    found = find_or_download([_file(Package("logpackage", "1.0", "logpackage/log.txt"))], cache)
    assert found.path.read_bytes() == CONTENT
    missing = Package("logpackage", "2.0", "logpackage/log.txt")
    with pytest.raises(UserError, match=r"the Python package logpackage==2.0 \(pip: "):
        find_or_download([_file(missing, name="new.txt")], cache)


def test_nothing_reachable_names_file_urls_and_places(data_folder, cache):
    wrong = Url(_put(data_folder.parent / "web" / "wrong.txt", b"login page").as_uri())
    with pytest.raises(UserError) as error:
        find_or_download([_file(name="a.txt"), _file(REFUSED, wrong)], cache)
    message = str(error.value)
    places = (str(data_folder), str(cache / "downloads"))
    assert all(word in message for word in ("a.txt or log.txt", *places, REFUSED.url, wrong.url))
    assert "refused" in message and "wrong content" in message
    assert "\n" not in message
    assert not _files_under(cache)


def test_registry_is_consistent():
    wanted = "ml_1m ml_100k ml_20m amazon_beauty amazon_video_games yelp gowalla gowalla_1000"
    assert {*wanted.split(), "gowalla_nyc"} <= set(DATASETS)
    for name, dataset in DATASETS.items():
        assert dataset.terms
        assert any(file.sources for file in dataset.files), name
        for file in dataset.files:
            assert file.format in FORMATS
            pinned = [s for s in file.sources if "raw.githubusercontent.com" in str(s)]
            assert len(file.sha256) == 64 or not pinned
