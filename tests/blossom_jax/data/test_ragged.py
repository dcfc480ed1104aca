"""Helpers that count inside ranges, against numpy."""

import numpy as np
import pytest

from blossom_jax.data import ragged


@pytest.mark.parametrize("values", [[], [3], [2, -1, 2, 7, -1, 0], np.arange(50) % 7])
def test_distinct_values_are_those_of_numpy(values):
    values = np.asarray(values, np.int64)
    found = ragged.distinct(values)
    np.testing.assert_array_equal(found, np.unique(values))
    assert found.dtype == values.dtype
