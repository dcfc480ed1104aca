"""Executes the notebooks from top to bottom, as Colab does, with small settings."""

import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SIZES = {
    "data.row_length": 64,
    "model.hidden_size": 16,
    "model.inner_size": 16,
    "model.num_layers": 1,
    "model.max_length": 64,
    "train.num_steps": 6,
    "eval.every_steps": 3,
    "log.every_steps": 2,
}
# Replaces the values of the cell tagged "parameters".
SMALL = {
    "quickstart": f"OVERRIDES = {SIZES | {'data.name': 'synthetic'}}",
    "attention_tour": "LENGTHS, TOKENS = (32, 64), 128",
    "your_own_data": f"OVERRIDES = {SIZES}",
}


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("BLOSSOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = read(path)
    (settings,) = (
        i for i, c in enumerate(notebook.cells) if c.metadata.get("tags") == ["parameters"]
    )
    notebook.cells.insert(settings + 1, nbformat.v4.new_code_cell(SMALL[path.stem]))
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_git_has_no_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "colab-badge.svg" in notebook.cells[0].source
    assert "cuda12" in code[0].source and "gpu_refusal" in code[1].source
