import numpy as np

from blossom_jax.coverage import NOWHERE, coverage


def test_coverage_by_hand():
    best = np.array([NOWHERE, 0, 4, 5, NOWHERE], np.int32)
    assert coverage(best, (1, 5, 6)) == {"coverage@1": 0.25, "coverage@5": 0.5, "coverage@6": 0.75}
