"""What a data card counts, on a log small enough to count by hand."""

import json

import polars as pl
import pytest

from blossom_jax.data import from_table, leave_one_out
from blossom_jax.data.statistics import describe


def _describe(histories, times=None):
    rows = [(user, item) for user, items in histories.items() for item in items]
    table = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    if times is not None:
        table = table.with_columns(pl.Series("time", times, pl.Int64))
    log = from_table(table, name="small")
    return describe(log, leave_one_out(log))


def test_everything_is_counted():
    # Training has a twice, b and c once: of 6 items a is the top 1% and 5%, a and b the top 20%.
    histories = {"u": "abcab", "v": "adaf", "w": "xb"}
    day = 86_400
    found = _describe(histories, [0, 0, 1, 1, 1, 5, 6, 6, 10, 3, 10 * day])
    assert (found["users"], found["items"], found["events"]) == (3, 6, 11)
    assert found["density"] == pytest.approx((3 + 3 + 2) / 18)
    assert found["repeated_share"] == pytest.approx(3 / 11)
    assert found["length"][0] == 2 and found["length"][50] == 4 and found["length"][100] == 5
    assert found["test_length"][0] == 3 and found["test_length"][100] == 4
    assert (found["first_day"], found["last_day"]) == ("1970-01-01", "1970-01-11")
    assert found["tied_share"] == pytest.approx(4 / 11)  # not where one user follows another
    assert found["repeated_target_share"] == 1 / 2  # b again, f for the first time
    assert found["unseen_target_share"] == 1 / 2  # f
    assert found["popular_target_share"] == {0.01: 0.0, 0.05: 0.0, 0.2: 0.5}
    json.dumps(found)


def test_without_times_there_are_no_ties_to_count():
    found = _describe({"u": "abc"})
    assert found["first_day"] is None and found["tied_share"] is None
