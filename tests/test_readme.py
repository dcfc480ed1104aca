"""Keeps the README and docs/ true: their code runs, and what they name exists."""

import pathlib
import re

import pytest
from tiny_run import make_log, make_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
TREE = re.search(r"```\n(pallas_kernels/ .*?)```", README, re.DOTALL)[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_runs(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "runs/yelp" in block:  # a run that a reader has trained by then
        make_run(make_log(tmp_path / "log"), tmp_path / "runs" / "yelp")
    exec(compile(block, "README.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert promised and capsys.readouterr().out.splitlines() == promised


def anchors(page):
    """Returns what links may name in a page, as GitHub makes it of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_linked_files_and_sections_exist(page):
    for at, section in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if "://" not in at:
            linked = page.parent / at if at else page
            assert linked.is_file(), at
            assert not section or section in anchors(linked), f"{at}#{section}"


@pages
def test_commands_and_configs_exist(page):
    modules = re.findall(r"python -m (experiments\.\w+)", page.read_text())
    folders = [ROOT / module.replace(".", "/") for module in modules]
    assert not [f for f in folders if not (f.with_suffix(".py").is_file() or f.is_dir())]
    configs = re.findall(r"--config=(configs/\w+\.py)", page.read_text())
    assert not [config for config in configs if not (ROOT / config).is_file()]


@pages
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE)
    assert not [t for t in targets if f"\n{t}:" not in makefile]


def test_every_page_is_linked_from_the_readme():
    assert not [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in README]


def test_tree_names_only_what_exists():
    stack: list[str] = []
    for line in TREE.splitlines():
        names = re.split(r"\s{2,}", line.strip(), maxsplit=1)[0]
        depth = (len(line) - len(line.lstrip())) // 2
        stack[depth:] = [names.rstrip("/")]
        folder = ROOT.joinpath(*stack[:depth])
        for name in names.split(", "):
            assert any(folder.glob(name.rstrip("/"))), f"{folder / name} is not there"
