"""A log of seven events of three users, and how to make one as small."""

import numpy as np
import polars as pl

from blossom_jax.data.prepare import from_table

ROWS = [
    ("b", "p", 5),
    ("a", "q", 3),
    ("b", "q", 1),
    ("a", "p", 3),
    ("a", "r", 2),
    ("b", "s", 5),
    ("c", "p", 9),
]


def as_table(rows):
    """Returns rows of user, item and perhaps time as a table."""
    names = ["user", "item", "time"][: len(rows[0])]
    return pl.DataFrame(rows, schema=names, orient="row")


def small_log(rows=ROWS, **options):
    """Prepares a log of rows."""
    return from_table(as_table(rows), name="small", **options)


def assert_same(log, other):
    """Asserts that two logs are equal wherever they are kept."""
    for field in ("items", "times", "offsets", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(log, field), getattr(other, field))
    assert (log.name, log.content_hash, log.card) == (other.name, other.content_hash, other.card)
