"""Checks what no single file can see: who imports whom, how long files grow, what leaks in."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("pallas_kernels", "blossom_jax", "configs", "experiments")
OURS = {*PACKAGES, "tests"}


def _python_files(*folders):
    files = {path.relative_to(ROOT).as_posix(): path for f in folders for path in ROOT.glob(f)}
    assert files, f"nothing in {folders=}: a test over no file passes unseen"
    return files


def _imports(path):
    """Yields the full name of every module that a file imports, however deep inside it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            # `from configs import common` names a module too.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module in OURS else [node.module]


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("pallas_kernels", r"(jax|jaxtyping|numpy|pallas_kernels)\b"),
        ("blossom_jax", r"(?!configs\b|experiments\b|tests\b|ml_collections\b)"),
        ("configs", r"ml_collections\b|configs\.(common|models)\b"),
        ("experiments", r"(?!tests\b)"),
    ],
    ids=PACKAGES,
)
def test_imports_point_one_way(package, allowed):
    stray = [
        f"{name} imports {module}"
        for name, path in _python_files(f"{package}/**/*.py").items()
        for module in _imports(path)
        if module.partition(".")[0] not in sys.stdlib_module_names and not re.match(allowed, module)
    ]
    assert not stray


def test_no_file_is_too_long():
    files = _python_files(*(f"{package}/**/*.py" for package in OURS))
    lengths = {name: len(path.read_text().splitlines()) for name, path in files.items()}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_public_names_have_docstrings():
    bare = [
        f"{name}: {node.name}"
        for name, path in _python_files(*(f"{package}/**/*.py" for package in PACKAGES)).items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare


def test_no_path_of_one_machine():
    # Written in halves, so that this file does not find itself.
    machine = re.compile(r"/(?:wo" r"rk|ro" r"ot|ho" r"me|Us" r"ers)/\w+")
    patterns = [f"{package}/**/*.py" for package in OURS]
    files = _python_files(*patterns, "*.md", "*.toml", "*.txt", "Makefile", ".ci/run")
    found = {name: machine.findall(path.read_text()) for name, path in files.items()}
    assert not {name: paths for name, paths in found.items() if paths}


def test_constraints_are_exact_versions_without_addresses():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    exact = re.compile(r'[\w.-]+==[\w.]+( ; python_version (<|>=) "3\.\d+")?')
    assert pins and all(exact.fullmatch(pin) for pin in pins)
