import numpy as np
import pytest

from blossom_jax.errors import UserError
from experiments import draw_paths


@pytest.fixture(scope="module")
def paths():
    return draw_paths.attended(draw_paths.interests())


def test_short_path_is_a_window_and_powers_of_two(paths):
    query, key = np.indices((draw_paths.LENGTH,) * 2)
    distance = query - key
    power = (distance > 0) & (distance & (distance - 1) == 0)
    wanted = (distance >= 0) & ((distance < draw_paths.WINDOW) | power)
    np.testing.assert_array_equal(paths[1], wanted)


def test_long_path_is_the_own_block_and_whole_selected_blocks(paths):
    query, key = np.indices((draw_paths.LENGTH,) * 2)
    own = query // draw_paths.BLOCK == key // draw_paths.BLOCK
    np.testing.assert_array_equal(paths[0] & own, own & (key <= query))
    others = (paths[0] & ~own).reshape(draw_paths.LENGTH, -1, draw_paths.BLOCK)
    assert (others.all(-1) == others.any(-1)).all()
    blocks_before = np.arange(draw_paths.LENGTH) // draw_paths.BLOCK
    wanted = np.minimum(blocks_before, draw_paths.NUM_SELECTED)
    np.testing.assert_array_equal(others.any(-1).sum(-1), wanted)


def test_same_file_every_time(tmp_path):
    for name in ("one.svg", "two.svg"):
        draw_paths.main([f"--output={tmp_path / name}"])
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(UserError, match="there is no folder no/such"):
        draw_paths.main(["--output=no/such/paths.svg"])
