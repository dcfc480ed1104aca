"""What several tests of the commands begin with."""

import numpy as np
import polars as pl
import pytest

from blossom_jax.data import from_table, interactions


@pytest.fixture(scope="session")
def log(tmp_path_factory):
    """Returns a folder with 60 users who walk along a ring of 30 items, 1 to 30 events each."""
    rng = np.random.default_rng(0)
    rows = [
        (str(user), str(item))
        for user in range(60)
        for item in (rng.integers(30) + np.arange(1 + user // 2)) % 30
    ]
    folder = tmp_path_factory.mktemp("log") / "tiny"
    table = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    interactions.save(from_table(table, name="tiny"), folder)
    return folder
