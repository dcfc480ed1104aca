"""The command that prepares a log, run as a user runs it."""

import os
import shlex
import subprocess
import sys

import pytest

from blossom_jax.data import load_dataset
from experiments import _advice, _cli, prepare_data

NAMES = ["--user-column=u", "--item-column=i", "--time-column=t"]


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "my log.csv"
    rows = [f"{u},{i},{t}" for u in "ab" for t, i in enumerate("xyxz")] + ["c,x,2020-01-01"]
    path.write_text("u,i,t\n" + "\n".join(rows) + "\n")
    return path


def _run(*arguments):
    """Runs the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as stop, _cli.errors_to_exit_code():
        sys.exit(prepare_data.main([str(a) for a in arguments]) or 0)
    return stop.value.code


def test_prepares_a_csv_and_prints_the_command_to_train(tmp_path, csv_file, capsys):
    output = tmp_path / "out put"
    assert _run(f"--input={csv_file}", *NAMES, f"--output={output}", "--repeats=latest") == 0
    log = load_dataset("custom", path=output)
    assert (log.num_users, log.num_items, log.num_events) == (3, 3, 7)
    assert log.card["source"] == "my log.csv"
    printed = capsys.readouterr().out
    assert "read: 3 users, 3 items, 9 events" in printed and "order of events: by time" in printed
    assert "repeats=latest: 3 users, 3 items, 7 events" in printed
    (line,) = [line for line in printed.splitlines() if "experiments.train" in line]
    command = shlex.split(line.partition(": ")[2])
    assert command[:4] == ["python", "-m", "experiments.train", "--config=configs/custom.py"]
    assert command[4:] == [f"--config.data.path={output}", "--workdir=runs/out put"]


@pytest.mark.parametrize(
    ("flags", "config"),
    [([], "synthetic.py"), (["--min-user-events=2"], "custom.py --config.data.")],
)
def test_a_known_log_is_trained_on_by_its_own_config(tmp_path, monkeypatch, capsys, flags, config):
    monkeypatch.setenv("BLOSSOM_CACHE", str(tmp_path))
    assert _run("--dataset=synthetic", *flags) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "experiments.train" in line]
    assert line.startswith(
        f"train on it with: python -m experiments.train --config=configs/{config}"
    )
    assert line.endswith(" --workdir=runs/synthetic")


def test_repeating_the_command_replaces_the_output(tmp_path, csv_file):
    output = tmp_path / "out"
    assert _run(f"--input={csv_file}", *NAMES, f"--output={output}") == 0
    assert _run(f"--input={csv_file}", *NAMES, f"--output={output}", "--min-user-events=2") == 0
    assert load_dataset("custom", path=output).num_users == 2


def test_newest_first(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("u c\nu b\nu a\n")
    flags = ["--format=user_item", "--newest-first", f"--output={tmp_path / 'out'}"]
    assert _run(f"--input={path}", *flags) == 0
    assert load_dataset("custom", path=tmp_path / "out").item_ids.tolist() == ["a", "b", "c"]


def test_known_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BLOSSOM_CACHE", str(tmp_path / "cache"))
    assert _run("--dataset=synthetic") == 0
    printed = capsys.readouterr().out
    assert "2,000 users asked" in printed
    assert "popular test targets" not in printed and "advice" not in printed
    assert f"prepared log: {tmp_path / 'cache' / 'prepared' / 'synthetic-'}" in printed


def test_a_card_and_advice_with_its_reasons(tmp_path, csv_file, capsys):
    flags = [f"--input={csv_file}", *NAMES, f"--output={tmp_path / 'out'}", "--card", "--advise"]
    assert _run(*flags) == 0
    lines = dict(
        line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines() if line
    )
    assert lines["before a test target"].startswith("min 3, ")
    assert lines["repeats"].startswith("22.2% of events")  # x of a and of b: 2 of 9
    assert "experiments.evaluate --workdir=RUN --shuffle" in lines["worth of order"]
    assert lines["model.attention"].startswith("use dense. 95% of histories are within 80 events")
    assert lines["model.dtype"].startswith("bfloat16 on an NVIDIA GPU")
    trained = lines["train on it with"]
    assert lines["advice"] == (
        f"{trained} --config.model.attention=dense --config.model.max_length=50 "
        "--config.data.row_length=64"
    )


FAR_BACK = " --config.model.selector=mean --config.model.rope_theta=1000000.0"


@pytest.mark.parametrize(
    ("wanted", "attention", "length", "more"),
    [
        (80, "dense", 100, ""),
        (81, "dense", 100, ""),
        (600, "dense", 600, ""),
        (2500, "dense", 2500, ""),
        (4096, "blossom", 4100, FAR_BACK),
    ],
)
def test_advice_goes_by_the_length_of_histories(wanted, attention, length, more):
    advice = _advice.advice({"test_length": {95: float(wanted)}}, "train")
    assert advice.splitlines()[-1].strip() == (
        f"advice: train --config.model.attention={attention} "
        f"--config.model.max_length={length} --config.data.row_length={length}{more}"
    )
    honest = "longer real histories are not measured" in " ".join(advice.split())
    assert honest == (attention == "blossom")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--input FILE with --output DIR, or --dataset NAME"),
        (["--dataset=movies"], "unknown data set 'movies'"),
        (["--dataset=synthetic", "--input=x"], "either --input"),
        (["--input={file}", *NAMES], "--input needs --output"),
        (["--input={file}", *NAMES, "--output={out}", "--min-user-events=many"], "invalid int"),
        (["--input={file}", *NAMES, "--output={out}", "--min-user-events=9"], "dropped 3 users"),
        (["--input={file}", *NAMES[:2], "--time-column=when", "--output={out}"], "it has: u, i, t"),
        (["--input={foreign}/cat.jpg", *NAMES, "--output={out}"], "the format is not clear"),
        (["--input={foreign}", *NAMES, "--output={out}"], "that is a folder"),
        (["--input={out}.csv", *NAMES, "--output={out}"], "there is no such file"),
        (["--input={file}", *NAMES, "--output={file}"], "must be a folder"),
        (["--input={file}", *NAMES, "--output={foreign}"], "not a prepared log"),
        (["--user_column=u"], "unrecognized arguments: --user_column=u"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, csv_file, capsys, flags, words):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "cat.jpg").write_text("cat")
    places = {"file": csv_file, "out": tmp_path / "out", "foreign": foreign}
    before = sorted(tmp_path.rglob("*"))
    assert _run(*(flag.format(**places) for flag in flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_as_a_command(tmp_path, csv_file):
    csv_file.write_text("u,i,t\na,x,1\na,y,soon\n")
    command = [sys.executable, "-m", "experiments.prepare_data", f"--input={csv_file}", *NAMES]
    result = subprocess.run(
        [*command, f"--output={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 2
    message = f"error: {csv_file}:3: the time 'soon' is neither a number nor an ISO 8601 time\n"
    assert result.stderr == message
    assert os.listdir(tmp_path) == ["my log.csv"]
