"""Keeps the README true: its code runs, and what it names exists."""

import pathlib
import re

import pytest
from tiny_run import make_log, make_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TREE = re.search(r"```\n(pallas_kernels/ .*?)```", README, re.DOTALL)[1]


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_runs(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "runs/yelp" in block:  # a run that a reader has trained by then
        make_run(make_log(tmp_path / "log"), tmp_path / "runs" / "yelp")
    exec(compile(block, "README.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert promised and capsys.readouterr().out.splitlines() == promised


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    ours = [link for link in links if "://" not in link]
    assert ours and not [link for link in ours if not (ROOT / link).is_file()]


def test_commands_and_configs_exist():
    modules = re.findall(r"python -m (experiments\.\w+)", README)
    folders = [ROOT / module.replace(".", "/") for module in modules]
    assert folders and all(f.with_suffix(".py").is_file() or f.is_dir() for f in folders)
    configs = re.findall(r"--config=(configs/\w+\.py)", README)
    assert configs and all((ROOT / config).is_file() for config in configs)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE)
    assert targets and not [t for t in targets if f"\n{t}:" not in makefile]


def test_tree_names_only_what_exists():
    stack: list[str] = []
    for line in TREE.splitlines():
        names = re.split(r"\s{2,}", line.strip(), maxsplit=1)[0]
        depth = (len(line) - len(line.lstrip())) // 2
        stack[depth:] = [names.rstrip("/")]
        folder = ROOT.joinpath(*stack[:depth])
        for name in names.split(", "):
            assert any(folder.glob(name.rstrip("/"))), f"{folder / name} is not there"
