"""An export gives the model's scores at any length, and needs jax, numpy and flatbuffers alone."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from tiny_model import NUM_ITEMS, raw_ids, tiny_model

from blossom_jax import export, serving, trained_model
from blossom_jax.errors import UserError
from blossom_jax.recommender import Recommender

MAX_LENGTH = 260  # some lengths below are selected from, (N + 1) S = 6
LENGTHS = [1, 5, 81, 257]
HISTORIES = [np.random.default_rng(n).integers(1, NUM_ITEMS + 1, n).tolist() for n in LENGTHS]
# What an installation of jax, numpy and flatbuffers brings.
PLAIN_JAX = ("jax", "jaxlib", "numpy", "flatbuffers", "ml_dtypes", "opt_einsum", "scipy")
ISOLATED = """
import json, sys
sys.path += sys.argv[1:]
import load
model = load.load()
histories = json.load(sys.stdin)
print(json.dumps([model.scores([history])[0].tolist() for history in histories]))
print(json.dumps(model.recommend([["3", "6"], ["no"]], top_k=10)))
assert not {"flax", "orbax", "blossom_jax"} & sys.modules.keys()
"""


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    model.config["eval"] = {"ks": [10]}
    directory = tmp_path_factory.mktemp("exports") / "tiny"
    export.write(model, directory, "# The card\n")
    return directory


def test_the_folder_holds_what_it_should(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("params", "params.npz", "items.json", "config.json", "README.md", "load.py"),
        "program.stablehlo",
    }


@pytest.fixture
def plain_jax(tmp_path):
    """Returns a folder with plain jax alone."""
    for name in PLAIN_JAX:
        package = pathlib.Path(importlib.util.find_spec(name).origin).parent
        (tmp_path / name).symlink_to(package)
        libraries = package.with_name(f"{name}.libs")
        if libraries.is_dir():
            (tmp_path / libraries.name).symlink_to(libraries)
    return tmp_path


def test_plain_jax_gives_equal_scores_at_every_length(model, folder, plain_jax):
    # -S leaves the environment's own packages out, and -I the variables that could bring them in.
    asked = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ISOLATED, str(folder), str(plain_jax)],
        input=json.dumps(HISTORIES),
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
    served, recommended = map(json.loads, asked.stdout.splitlines())
    merged = nnx.merge(model.graphdef, model.params)
    encode = jax.jit(lambda items, positions: merged.scores(merged(items, positions)[0]))
    for history, scores in zip(HISTORIES, served, strict=True):
        item_ids = jnp.array([history + [0] * (MAX_LENGTH - len(history))])
        column = np.arange(MAX_LENGTH)
        positions = jnp.array(np.where(column < len(history), column, -1))[None]
        expected = encode(item_ids, positions)[len(history) - 1]
        error = np.linalg.norm(np.array(scores) - expected) / np.linalg.norm(expected)
        assert error < 1e-5
    known, popular = recommended
    ours = Recommender(model, batch_users=1).recommend([["3", "6"], ["no"]])
    assert [[raw for raw, _ in ranked] for ranked in ours] == [
        [raw for raw, _ in ranked] for ranked in (known, popular)
    ]
    np.testing.assert_allclose([s for _, s in known], [s for _, s in ours[0]], rtol=1e-5)


def test_the_program_serves_any_batch_on_three_platforms(folder):
    program = jax.export.deserialize(bytearray((folder / "program.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    _, item_ids, positions = jax.tree.unflatten(program.in_tree, program.in_avals)[0]
    assert str(item_ids.shape) == str(positions.shape) == "(b, l)"
    assert program.out_avals[0].shape[1] == NUM_ITEMS + 1


def test_serving_runs_its_load_py(folder):
    model = serving.load(folder)
    assert model.item_ids == raw_ids()
    with pytest.raises(UserError, match="holds no load.py"):
        serving.load(folder / "params")


def run_load_py(folder, *arguments):
    command = [sys.executable, folder / "load.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_load_py_without_a_history_says_how(folder):
    run = run_load_py(folder)
    assert run.returncode == 1 and run.stderr.startswith("usage: python ")


def test_load_py_says_what_it_does_not_know(folder):
    run = run_load_py(folder, "nobody,nothing")
    assert run.returncode == 0 and len(run.stdout.splitlines()) == 10
    skipped, popular = run.stderr.splitlines()[-2:]
    assert skipped.endswith("does not have them: nobody, nothing")
    assert popular.startswith("none is known: popular items")


def test_params_load_with_plain_orbax_and_with_numpy(model, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder / "params")
    table = model.params["item_embedding"]["embedding"][...]
    np.testing.assert_array_equal(restored["item_embedding"]["embedding"], table)
    with np.load(folder / "params.npz") as arrays:
        assert set(arrays.files) == set(trained_model.named(model.params))
        np.testing.assert_array_equal(arrays["item_embedding/embedding"], table)


def test_an_export_opens_as_the_model_that_it_was(model, folder):
    opened = trained_model.load(folder)
    assert opened.step == 7 and opened.catalogue.item_ids == raw_ids()
    jax.tree.map(np.testing.assert_array_equal, opened.params, model.params)
    with pytest.raises(UserError, match="holds the model after step 7, not 8"):
        trained_model.load(folder, step=8)


def test_what_is_there_is_left_alone(model, folder):
    with pytest.raises(UserError, match="is there already"):
        export.write(model, folder, "")


@pytest.mark.parametrize(
    ("max_length", "expected"), [(8, [8]), (16, [16]), (50, [16, 50]), (300, [16, 64, 256, 300])]
)
def test_few_lengths(max_length, expected):
    assert export.lengths(max_length) == expected
