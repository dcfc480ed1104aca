"""The recommend command: raw ids in and out, streams, and what it says about bad input."""

import io
import json

import numpy as np
import pytest
from tiny_run import make_log, make_run

from blossom_jax.data import interactions, leave_one_out
from blossom_jax.errors import UserError
from blossom_jax.recommender import Recommender
from experiments import _evaluation, _setup, _titles, _workdir, evaluate, recommend


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return make_log(tmp_path_factory.mktemp("log") / "tiny")


@pytest.fixture(scope="module")
def workdir(log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    make_run(log, folder)
    return folder


@pytest.fixture(autouse=True)
def no_other_cache(monkeypatch):
    monkeypatch.setattr("experiments._compile_cache.enable", lambda: None)


def ask(capsys, workdir, *arguments):
    """Returns the exit code, what was printed, and what was said beside it."""
    code = recommend.main([f"--workdir={workdir}", *arguments])
    return code, *capsys.readouterr()


def test_one_history_and_its_titles(workdir, tmp_path, capsys):
    titles = tmp_path / "titles.csv"
    titles.write_text("id,title\n" + "".join(f'i{k},"Item, {k}"\n' for k in range(30)))
    flags = "--history=i1,nowhere,i2", f"--titles={titles}"
    code, shown, said = ask(capsys, workdir, *flags, "--top-k=3", "--exclude=i3,i4", "--json")
    found = json.loads(shown)
    assert code == 0 and "skipped 1 id(s) that the model does not know: 'nowhere'" in said
    assert found["unknown"] == ["nowhere"] and len(found["items"]) == 3
    assert not {"i1", "i2", "i3", "i4"} & {item["id"] for item in found["items"]}
    assert found["items"][0]["title"] == f"Item, {found['items'][0]['id'][1:]}"
    _, table, _ = ask(capsys, workdir, *flags, "--top-k=3", "--exclude=i3,i4")
    assert [row.split()[2] for row in table.splitlines()] == [i["id"] for i in found["items"]]
    assert "Item, " in table.splitlines()[0]


@pytest.mark.parametrize(
    ("history", "words"), [("", "the history is empty"), ("x,y", "no id of the history is known")]
)
def test_popular_items_and_more_than_there_are(workdir, capsys, history, words):
    _, shown, said = ask(capsys, workdir, f"--history={history}", "--top-k=31", "--json")
    assert f"{words}: these are the most popular items" in said
    assert "--top-k=31 is more than the catalogue: it has 30 items" in said
    counts = [item["score"] for item in json.loads(shown)["items"]]
    assert len(counts) == 30 and counts == sorted(counts, reverse=True)


def test_a_file_is_answered_in_its_order_and_bad_lines_are_counted(
    workdir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(recommend, "_CHUNK", 3)
    lines = [
        *('{"user": "a", "history": ["i1", "i2"]}', "{not json", '{"history": ["i5"]}', ""),
        *('{"user": 7, "history": []}', '{"user": "b"}', '{"history": [1.5]}'),
        '{"user": "c", "history": ["i9", "zz", 3]}',
    ]
    source, target = tmp_path / "users.jsonl", tmp_path / "out" / "answers.jsonl"
    source.write_bytes(
        "\n".join(lines).encode("utf-8-sig") + b'\n{"user": "\xff"}\n{"user": "\\ud800"}'
    )
    (tmp_path / "few").write_text("i6\ni7\ni8\n")
    flags = f"--input={source}", f"--output={target}", f"--allow=@{tmp_path}/few"
    code, _, said = ask(capsys, workdir, *flags, "--batch-users=2")
    assert code == 1
    assert f"{source}:2: not JSON" in said and ": {not json" in said
    assert f"{source}:6: not an object with a list 'history'" in said
    assert f"{source}:7: an id is text or a whole number, not 1.5" in said
    assert f"{source}:9: not UTF-8" in said and f"{source}:10: not UTF-8" in said
    assert "error: 5 line(s) could not be read" in said and "4 users in " in said
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer.get("user") for answer in answers] == ["a", None, 7, "c"]
    assert all({i["id"] for i in answer["items"]} == {"i6", "i7", "i8"} for answer in answers)
    assert answers[2]["popular"] and answers[3]["unknown"] == ["zz", "3"]
    with pytest.raises(UserError, match="answers.jsonl is there already"):
        recommend.main([f"--workdir={workdir}", *flags])


def test_standard_input_to_standard_output(workdir, capsys, monkeypatch):
    line = io.BytesIO(b'{"history": ["i1", "i1"]}\n')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(line))
    code, shown, _ = ask(capsys, workdir, "--input=-", "--keep-seen", "--top-k=30")
    (answer,) = map(json.loads, shown.splitlines())
    assert code == 0 and "i1" in {item["id"] for item in answer["items"]}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--history=i1", "--top-k=0"], "--top-k must be at least 1, got 0"),
        (["--history=i1", "--output=x"], "--output goes with --input"),
        (["--history=i1", "--allow=x,y"], "no id of allow is in the catalogue"),
        (["--history=i1", "--exclude=@nowhere"], "nowhere cannot be read"),
        (["--history=i1", "--titles=nowhere.csv"], "nowhere.csv: there is no such file"),
        (["--history=i1", "--step=3"], "no checkpoint of step 3; it has: 4"),
        (["--history=i1", "--step=0"], "no checkpoint of step 0; it has: 4"),
        (["--input=nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        ([], "one of the arguments --history --input is required"),
    ],
)
def test_bad_flags_are_named(workdir, flags, words):
    with pytest.raises(UserError, match=words):
        recommend.main([f"--workdir={workdir}", *flags])


def test_ids_of_another_encoding_are_refused(workdir, tmp_path):
    (tmp_path / "ids").write_bytes(b"\xe9\n")
    with pytest.raises(UserError, match="ids is not UTF-8: 'utf-8' codec can't decode"):
        recommend.main([f"--workdir={workdir}", "--history=i1", f"--exclude=@{tmp_path}/ids"])


def test_titles_need_their_columns(workdir, tmp_path):
    (tmp_path / "t.csv").write_text("number,word\n1,a\n")
    with pytest.raises(UserError, match="needs a column 'id'; it has: number, word"):
        recommend.main([f"--workdir={workdir}", "--history=i1", f"--titles={tmp_path}/t.csv"])


def test_titles_between_tabs_may_have_quotes(tmp_path):
    path = tmp_path / "t.item"
    path.write_text('item_id:token\ttitle:token_seq\n1\t"Quoted\nit"em 8\tb\n')
    assert _titles.read_titles(path) == {"1": '"Quoted', 'it"em 8': "b"}


def test_a_checkpoint_of_another_model_is_refused(workdir, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("checkpoints", "items.json"):
        (other / name).symlink_to(workdir / name)
    config = json.loads((workdir / "config.json").read_text())
    config["model"]["hidden_size"] = 32
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not fit this model"):
        Recommender.load(other)


def test_a_folder_without_a_catalogue_says_how_to_get_one(workdir, tmp_path):
    (tmp_path / "config.json").symlink_to(workdir / "config.json")
    with pytest.raises(UserError, match="items.json cannot be read .*same training command"):
        Recommender.load(tmp_path)


def test_predicting_equals_evaluating(log, workdir):
    events = interactions.load(log)
    targets = leave_one_out(events).test
    recommender = Recommender.load(workdir, batch_users=8)
    histories = [
        events.item_ids[events.items[events.offsets[user] : target] - 1].tolist()
        for user, target in zip(*targets, strict=True)
    ]
    wanted = events.item_ids[events.items[targets.target] - 1]
    config = _workdir.read_config(workdir)
    evaluation = _evaluation.Evaluation(
        config, events, _setup.load_data(config)[1], "test", recommender.model.mesh
    )
    evaluator = _evaluation.make_evaluator(
        config, evaluate._encoder(recommender.model)[0], events.num_items, recommender.model.mesh
    )
    ranks = evaluation.rank(evaluator, recommender.model.params)
    for exclude_seen, expected in ((True, ranks.full), (False, ranks.full_keep)):
        found = recommender.recommend(histories, events.num_items, exclude_seen=exclude_seen)
        rank = [_rank(ranked, raw) for ranked, raw in zip(found, wanted, strict=True)]
        np.testing.assert_array_equal(rank, expected)


def _rank(ranked, wanted):
    scores = dict(ranked)
    if wanted not in scores:
        return np.inf
    others = np.array([score for raw, score in ranked if raw != wanted])
    return 1 + np.sum(others > scores[wanted]) + 0.5 * np.sum(others == scores[wanted])
