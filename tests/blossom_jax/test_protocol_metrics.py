"""Metrics by protocol against those worked out by hand from few ranks."""

import dataclasses

import numpy as np
import pytest

from blossom_jax.protocol_metrics import Ranks, summarize


def test_every_protocol_has_its_metrics():
    full = np.array([1, 3, np.inf, 30.5])
    sampled = {"uni30": np.array([1, 1, 2, 11.0]), "pop30_unseen": np.array([1, 1, 1, 1.0])}
    sampled["uni30_unseen"] = np.array([1, 1, 2, 6.0])
    num_seen = np.array([0, 3, 0, 25])
    ranks = Ranks(full, np.array([2, 3, 1, 31.0]), sampled, 31, 30, num_seen)
    found = summarize(ranks, ks=(1, 10))
    assert found["full/recall@10"] == 0.5 and found["full/ndcg@10"] == (1 + 0.5) / 4
    assert found["full/mrr@1"] == 0.25 and found["full_keep/recall@1"] == 0.25
    assert found["uni30/recall@10"] == 0.75 and found["pop30_unseen/recall@1"] == 1
    # All the others were drawn: there is nothing to correct.
    for protocol in ("uni30", "uni30_unseen"):
        for name in ("mrr@10", "recall@1"):
            corrected = found[f"{protocol}_corrected/{name}"]
            assert corrected == pytest.approx(found[f"{protocol}/{name}"])
    assert found["repeated_targets"] == 0.25
    assert len(found) == 7 * 6 + 1


def test_the_loss_is_averaged_where_there_is_one():
    full = np.array([1.0, 2, 3, 4])
    ranks = Ranks(full, full, {}, 31, 30, np.zeros(4, int), loss=np.array([1.0, 2, 3, 6]))
    assert summarize(ranks)["loss"] == 3
    assert summarize(ranks.of_users(full > 2))["loss"] == 4.5
    for loss in (None, np.array([1.0, 2, 3, np.nan])):
        assert "loss" not in summarize(dataclasses.replace(ranks, loss=loss))
