"""Checkpoints: what is kept, what comes back, and what happens when files are damaged."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blossom_jax import sharding
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.errors import UserError


def make_state(step):
    params = {"table": jnp.full((64, 8), step, jnp.float32), "layers": {0: jnp.ones(3)}}
    state = {"params": params, "opt_state": optax.adamw(1e-3).init(params)}
    return state | {"step": jnp.asarray(step, jnp.int32)}


def abstract(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


LIKE = abstract(make_state(0))


@pytest.fixture
def directory(tmp_path):
    """Returns a folder with checkpoints of the steps 10 (the best), 30 and 40."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20, 30, 40):
        checkpoints.save(step, make_state(step), {"loss": 0.1 * step}, best_step=10)
    checkpoints.close()
    return tmp_path / "checkpoints"


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_the_latest_two_and_the_best_are_kept(directory):
    assert steps(directory) == [10, 30, 40]


def test_everything_comes_back_to_the_bit(directory):
    state, progress = Checkpoints(directory).restore_latest(LIKE)
    assert progress == {"loss": 0.1 * 40}
    jax.tree.map(np.testing.assert_array_equal, state, make_state(40))
    assert jax.tree.structure(state) == jax.tree.structure(LIKE)
    assert Checkpoints(directory).latest_progress() == progress
    best = Checkpoints(directory).restore_params(10, LIKE["params"])
    np.testing.assert_array_equal(best["table"], np.full((64, 8), 10))


def test_nothing_saved_restores_nothing(tmp_path):
    assert Checkpoints(tmp_path / "none").restore_latest(LIKE) is None
    assert Checkpoints(tmp_path / "none").latest_progress() is None


def test_donating_the_state_right_after_save_leaves_the_copy_alone(tmp_path):
    add_one = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = make_state(1)
    checkpoints.save(1, state, {}, best_step=1)
    for _ in range(10):
        state = add_one(state)
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path).restore_latest(LIKE)
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(1))


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-5])


def truncate_all(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:5])


def flip_a_bit(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_file(folder):
    largest_file(folder).unlink()


@pytest.mark.parametrize("damage", [truncate, truncate_all, flip_a_bit, lose_a_file])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(directory, damage, capfd):
    damage(directory / "40")
    lines = []
    checkpoints = Checkpoints(directory, report=lines.append)
    state, progress = checkpoints.restore_latest(LIKE)
    assert int(state["step"]) == 30
    assert progress == {"loss": 0.1 * 30}
    (line,) = lines
    assert line.startswith(f"checkpoint {directory / '40'} is damaged")
    assert line.endswith("; falling back to the one before")
    assert capfd.readouterr() == ("", "")
    checkpoints.save(40, make_state(41), {}, best_step=10)
    checkpoints.close()
    assert int(Checkpoints(directory).restore_latest(LIKE)[0]["step"]) == 41


def test_one_that_was_never_sealed_is_passed_over(directory):
    (directory / "40" / "sha256.json").unlink()
    state, _ = Checkpoints(directory, report=lambda line: None).restore_latest(LIKE)
    assert int(state["step"]) == 30


def test_reading_only_removes_nothing(directory):
    truncate(directory / "40")
    (directory / "50.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(directory, read_only=True, report=lambda line: None)
    assert checkpoints.latest_progress() == {"loss": 0.1 * 30}
    assert checkpoints.restore_params(10, LIKE["params"]) is not None
    checkpoints.close()
    assert steps(directory) == [10, 30, 40]
    assert (directory / "50.orbax-checkpoint-tmp").exists()


def test_when_all_are_damaged_the_run_starts_anew(directory):
    for step in (10, 30, 40):
        truncate(directory / str(step))
    lines = []
    assert Checkpoints(directory, report=lines.append).restore_latest(LIKE) is None
    assert len(lines) == 3


def test_a_damaged_best_is_reported(directory):
    truncate(directory / "10")
    lines = []
    assert Checkpoints(directory, report=lines.append).restore_params(10, LIKE["params"]) is None
    (line,) = lines
    assert line.startswith(f"checkpoint {directory / '10'} is damaged")


def test_a_folder_is_made_by_the_first_save(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.restore_latest(LIKE) is None
    checkpoints.close()
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_cannot_be_sealed_is_an_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr("blossom_jax.checkpoint._digests", refuse)
    checkpoints.save(10, make_state(10), {}, best_step=10)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(20, make_state(20), {}, best_step=10)
    checkpoints.close()


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"table": jnp.ones((2, 2))}, r"table has the shape \(64, 8\) there, and \(2, 2\) in the"),
        ({"layers": {}}, "layers.0 of the checkpoint is not in it"),
        ({"more": jnp.ones(2)}, "its more is not in the checkpoint"),
    ],
)
def test_another_model_is_refused_in_one_line(directory, params, reason):
    state = make_state(0)
    other = abstract(state | {"params": state["params"] | params})
    with pytest.raises(UserError, match=f"does not fit this model: {reason}") as error:
        Checkpoints(directory).restore_latest(other)
    assert "\n" not in str(error.value)
    assert steps(directory) == [10, 30, 40]


def sharded(shape, params):
    """Lays parameters out over a mesh of that shape; the table's rows are split over its model."""
    mesh = sharding.make_mesh(*shape, devices=jax.devices()[: shape[0] * shape[1]])
    state = {"params": params, "opt_state": optax.adamw(1e-3).init(params)}
    return jax.device_put(state, sharding.param_shardings(mesh, state))


def test_shards_come_back_on_any_mesh(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(128, 4)).astype(np.float32)
    params = {"item_embedding": {"embedding": table}, "bias": np.ones(3, np.float32)}
    state, step = sharded((4, 2), params), 0
    for step, shape in enumerate([(1, 1), (8, 1), (2, 4)], 1):
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(step, state, {}, best_step=step)
        checkpoints.close()
        like = abstract(sharded(shape, params))
        state, _ = Checkpoints(tmp_path).restore_latest(like)
        jax.tree.map(np.testing.assert_array_equal, state["params"], params)
        for restored, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
            assert restored.sharding == wanted.sharding
    shards = state["params"]["item_embedding"]["embedding"].addressable_shards
    assert {shard.data.shape for shard in shards} == {(32, 4)}


def test_a_shard_that_is_missing_is_named(directory):
    shard = largest_file(directory / "40" / "params")
    shard.unlink()
    lines = []
    assert Checkpoints(directory, report=lines.append).latest_progress() == {"loss": 0.1 * 30}
    name = shard.relative_to(directory / "40")
    assert lines == [
        f"checkpoint {directory / '40'} is damaged: its file {name} is missing; falling back to "
        "the one before"
    ]
