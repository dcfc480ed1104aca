"""Runs every command that the README and docs/ show: as shown, but on a tiny log and a few steps.

A page is read from top to bottom in a folder of its own, so that a later command finds what an
earlier one wrote. Where a page uses a run that it does not train, there is one. A sweep's rows and
grid are read and checked, not trained, but for those of the quickstart.
"""

import contextlib
import importlib
import itertools
import pathlib
import re
import shlex
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from tiny_run import SIZES

from blossom_jax import sharding
from blossom_jax.data import load, registry
from blossom_jax.errors import UserError
from configs.sweeps import quickstart
from experiments import train
from experiments.sweep import __main__ as sweep

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAIN = SIZES | {
    "data.min_user_events": 1,
    "data.min_item_events": 1,
    "train.warmup_steps": 1,
    "eval.batch_users": 64,
}
# What is added to a command, by its first words; the longest that fits.
SMALL = {
    "train": [f"--config.{key}={value}" for key, value in TRAIN.items()],
    "benchmark throughput": ["--rounds=1", "--batch-rows=2"],
    "benchmark attention": ["--rounds=1", "--lengths=32", "--tokens=64"],
    "benchmark loss": ["--rounds=1", "--items=30,60", "--lengths=4,8", "--losses=plain,bce"],
    "benchmark step": ["--rounds=1", "--items=30", "--lengths=8", "--steps=cross_entropy"],
    "benchmark latency": [
        "--rounds=1",
        "--events=2",
        "--histories=20,40",
        "--recompute=16",
        "--items=50",
    ],
    "benchmark twins": ["--rounds=1", "--lengths=8", "--tokens=16", "--items=30"],
    "benchmark evaluation": ["--rounds=1", "--steps=1", "--batch-rows=8"],
    "benchmark bounded": ["--bounds=8", "--users=4"],
    "benchmark devices": [
        *("--rounds=1", "--devices=1", "--tokens=64", "--length=16", "--items=30", "--heads=2"),
        *("--kv-heads=1", "--head-size=4", "--attention=dense", "--dtype=float32"),
    ],
    "benchmark gpu-report": [
        *("--rounds=1", "--lengths=32", "--tokens=64", "--seconds=1"),
        *("--training-lengths=32", "--training-tokens=64", "--items=30"),
    ],
}
SMALL["sweep"] = [*SMALL["train"], "--seeds=1"]
QUICKSTART = "--sweep=configs/sweeps/quickstart.py"  # is trained; others are read and checked
INTER = "user_id:token\titem_id:token\ttimestamp:float"
SMALL["baselines"] = SMALL["train"]
TRAINS = ("train", "sweep", "baselines")  # write the folder that --workdir names
# Commands that need what is not here, and what they say then.
REFUSED = {"benchmark tune": "tune needs a GPU", "benchmark kernels": "kernels needs a GPU"}


def commands(page):
    """Returns the commands of a page, in blocks of shell or in a sentence, as lists of words."""
    found = []
    pattern = r"```bash\n(.*?)```|`(python -m [^`]*)`"
    for block, inline in re.findall(pattern, page.read_text(), re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines() or [inline.replace("\n", " ")]
        found += [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words[:2] == ["python", "-m"]]


def small(command):
    """Returns (module, its arguments with those of `SMALL` added)."""
    name, arguments = command[2].removeprefix("experiments."), command[3:]
    key = next((k for k in (f"{name} {arguments[0]}", name) if k in SMALL), None)
    added = SMALL.get(key, [])
    if name == "sweep" and QUICKSTART not in arguments:
        added = []
    return name, arguments + added


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Returns a folder with one log: 60 users who walk along a ring of 30 items."""
    rng = np.random.default_rng(0)
    rows = [
        (user, item, 1_600_000_000 + time)
        for user in range(60)
        for time, item in enumerate((rng.integers(30) + np.arange(4 + user // 2)) % 30)
    ]
    folder = tmp_path_factory.mktemp("data")
    lines = [f"u{user},i{item},{time}" for user, item, time in rows]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")
    return folder


@pytest.fixture
def here(log, tmp_path, monkeypatch):
    """Goes to an empty folder like a clone's, where every data set by name is the one log.

    The machine has one device, unless a command asks for several.
    """
    make_mesh = sharding.make_mesh

    def one_device(*shape, devices=None):
        return make_mesh(*shape, devices=devices or jax.devices()[:1])

    monkeypatch.setattr(sharding, "make_mesh", one_device)
    tiny = registry.File("log.csv", "csv", columns=registry.Columns("user", "item", "time"))
    names = [*registry.DATASETS, *load._GENERATED, "NAME"]
    sets = {name: registry.Dataset((tiny,), "none") for name in names}
    monkeypatch.setattr(load, "DATASETS", sets)
    monkeypatch.setattr(load, "_GENERATED", {})
    monkeypatch.setenv("BLOSSOM_DATA", str(log))
    monkeypatch.setenv("BLOSSOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copy(log / "log.csv", tmp_path)
    _, *lines = (log / "log.csv").read_text().replace(",", "\t").splitlines()
    (tmp_path / "log.inter").write_text("\n".join([INTER, *lines]) + "\n")
    (tmp_path / "users.jsonl").write_text('{"user": "me", "history": ["i1", "i2"]}\n')
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns where a run is put once one was needed."""
    return tmp_path_factory.mktemp("runs") / "run"


def lay_run(workdir, trained):
    """Puts a trained run where a page speaks of one."""
    if not trained.exists():
        train.main([f"--config={ROOT}/configs/yelp.py", f"--workdir={trained}", *SMALL["train"]])
    shutil.copytree(trained, workdir)


def runs_of(name, arguments):
    """Returns the folders of the runs that a command reads."""
    words = itertools.chain.from_iterable(word.split("=", 1) for word in arguments)
    flags = {"--config.train.init_from"} | ({"--workdir"} if name not in TRAINS else set())
    runs = [pathlib.Path(value) for flag, value in itertools.pairwise(words) if flag in flags]
    return runs + [pathlib.Path(w) for w in arguments if name == "report" and w[0] != "-"]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: p.name)
def test_commands_run(page, here, trained):
    for command in commands(page):
        name, arguments = small(command)
        for run in runs_of(name, arguments):
            if not run.exists():
                lay_run(run, trained)
        refused = REFUSED.get(f"{name} {arguments[0]}")
        print("$", shlex.join([*command[:3], *arguments]))  # pytest shows it if the command fails
        with pytest.raises(UserError, match=refused) if refused else contextlib.nullcontext():
            run_command(name, main_of(command[2]), arguments)


def run_command(name, main, arguments):
    """Runs a command in this process; a sweep would give each row one, which knows no tiny log."""
    if name != "sweep":
        main(arguments)
    elif QUICKSTART in arguments:
        for row in quickstart.get_sweep()["rows"]:
            main([*arguments, f"--only={row}"])
        main(arguments)
    else:
        with mock.patch.object(sweep, "_train_all", return_value={}) as trained:
            with mock.patch.object(sweep.folder, "summarize", return_value=""):
                main(arguments)
        trained.assert_called_once()


def main_of(module):
    found = importlib.import_module(module)
    return getattr(found, "main", None) or importlib.import_module(f"{module}.__main__").main


def test_every_small_setting_serves_a_command():
    shown = {small(c)[0] for page in PAGES for c in commands(page)}
    assert {key.split()[0] for key in SMALL} <= shown
