"""Keeps the error texts in docs/troubleshooting.md those that the code raises."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = [" ".join(q.split()) for q in re.findall(r"^- `([^`]+)`", PAGE, re.MULTILINE)]


def texts(path):
    """Yields every string in a file, with ... for each value that is put into it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


FOLDERS = ("blossom_jax", "pallas_kernels", "experiments")
SOURCE = [t for f in FOLDERS for path in (ROOT / f).rglob("*.py") for t in texts(path)]


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_code_says_so(quoted):
    assert any(quoted in text for text in SOURCE), quoted
