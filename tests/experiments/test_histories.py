"""Histories cut short or out of order: which rows there are, and what the table shows."""

import numpy as np
import polars as pl
import pytest

from blossom_jax.data import from_table, leave_one_out
from blossom_jax.errors import UserError
from blossom_jax.protocol_metrics import Ranks
from experiments import _histories, evaluate


@pytest.fixture
def log():
    rows = [(user, f"{user}{n}") for user, count in (("a", 4), ("b", 12)) for n in range(count)]
    return from_table(pl.DataFrame(rows, schema=["user", "item"], orient="row"), name="small")


def _rank(asked):
    """Returns a stand-in for a model, which ranks by how much it is shown."""

    def rank(interactions, last):
        asked.append((interactions.items.tolist(), last))
        ranks = np.full(2, 10.0 / last)
        return Ranks(ranks, ranks, {}, num_items=16, num_negatives=5, num_seen=np.zeros(2, int))

    return rank


def test_lengths_are_read_in_order_once():
    assert _histories.read_lengths("") == []
    assert _histories.read_lengths("20,5,20") == [5, 20]
    for text in ("0,5", "5,many", "-1", "5,"):
        with pytest.raises(UserError, match="numbers of events from 1 up"):
            _histories.read_lengths(text)


def test_cut_histories_say_how_many_they_change(log):
    asked = []
    rows = _histories.cut_short(
        _rank(asked), log, leave_one_out(log).test, [2, 5, 50], max_length=20, ks=(1, 10)
    )
    assert [(row["last"], row["changed"]) for row in rows] == [(2, 1.0), (5, 0.5), (20, 0.0)]
    assert asked == [(log.items.tolist(), last) for last in (2, 5, 20)]
    shown = _histories.table("title", rows, rows[-1]).splitlines()
    assert shown[0] == "title" and shown[2].split()[-2:] == ["of", "all"]
    assert shown[3].split()[:3] == ["last", "2", "100.0%"]
    assert shown[-1].endswith("100.0%")


def test_each_order_shows_the_same_events(log):
    asked = []
    rows = _histories.out_of_order(
        _rank(asked), log, leave_one_out(log).test, max_length=20, ks=(1, 10)
    )
    assert [row["changed"] for row in rows] == [0.0, 1.0, 1.0, 1.0]
    orders = {tuple(items) for items, _ in asked}
    assert len(orders) == 4 and len({tuple(sorted(order)) for order in orders}) == 1


def test_the_two_tests_are_not_mixed(tmp_path):
    with pytest.raises(UserError, match="two different tests"):
        evaluate.main([f"--workdir={tmp_path}", "--last=5", "--shuffle"])
