"""Advises a configuration for a log, as far as docs/hyperparameters.md has measurements."""

import math
from collections.abc import Iterator

from blossom_jax.data.statistics import Statistics
from experiments._data_card import align

_ENOUGH = 95  # percent of the histories asked for that must fit
_SEES_ALL = 80  # (N + 1) S at the released sizes: up to this length nothing is left out
_FASTER_FROM = 4096  # on an H200, than dense attention with whatever heads suit it best
_LENGTH_STEP, _LONGEST = 50, 16_384  # as published lengths are; the longest that was timed


def advice(log: Statistics, train_command: str) -> str:
    """Returns a command to train with, and the reasons.

    Args:
      log: What the log is like.
      train_command: Trains on the log with the defaults.
    """
    return align(_lines(log, train_command))


def _lines(log: Statistics, train_command: str) -> Iterator[tuple[str, str]]:
    wanted = log["test_length"][_ENOUGH]
    length = min(math.ceil(wanted / _LENGTH_STEP) * _LENGTH_STEP, _LONGEST)
    yield (
        "model.max_length",
        f"{length:,}: {_ENOUGH}% of the histories that test asks for have {wanted:,.0f} events at "
        "most. On MovieLens-1M fewer did as well: configs/sweeps/lengths.py trains several",
    )
    attention, reason = _attention(wanted)
    yield "model.attention", reason
    values: dict[str, object] = {"model.attention": attention, "model.max_length": length}
    values["data.row_length"] = max(length, 64)
    if attention == "blossom":
        yield (
            "model.selector",
            "mean: on generated histories, with blocks chosen by average keys, the long-term path "
            "alone found what stood up to 8,191 events back, and both paths what stood up to 511 "
            "and part of the rest; with the compressor both found nothing in as many steps",
        )
        values["model.selector"] = "mean"
        yield (
            "model.rope_theta",
            "1e6: with 10,000 the long-term path found nothing from 4,095 events back on",
        )
        values["model.rope_theta"] = 1e6
        yield (
            "model.num_layers",
            "2 by default; on MovieLens-1M four were better, .2044 in place of .1964 in "
            "full/ndcg@10, with 1.6 times the memory of a step. Learning rates above 2e-3 then "
            "failed in some seeds",
        )
    yield (
        "model.dtype",
        "bfloat16 on an NVIDIA GPU from A100 on: on MovieLens-1M as good as float32 with either "
        "attention, with 30% of the memory of a step of Blossom and 59% of dense. float32 on a CPU",
    )
    flags = (f"--config.{name}={value}" for name, value in values.items())
    yield "advice", " ".join([train_command, *flags])


def _attention(wanted: float) -> tuple[str, str]:
    """Says which attention to use for histories of a length, and why."""
    if wanted <= _SEES_ALL:
        return "dense", (
            f"use dense. {_ENOUGH}% of histories are within {_SEES_ALL} events, up to where "
            "Blossom at the released sizes leaves nothing out. On Yelp, Amazon Beauty and Video "
            "Games, as short as that, Blossom was no better"
        )
    if wanted < _FASTER_FROM:
        return "dense", (
            f"use dense. Below {_FASTER_FROM:,} events dense attention with few wide heads "
            "(model.num_heads=1 or 2, and model.num_kv_heads likewise) was the faster one on an "
            "H200, and on MovieLens-1M and Gowalla-1000 at 200 events the two could not be told "
            "apart. With heads of 16, as released, Blossom was the faster one from 128 events on: "
            "configs/sweeps/twins.py compares them on a log"
        )
    return "blossom", (
        f"use Blossom, for its cost: from {_FASTER_FROM:,} events on its attention was the faster "
        "one on an H200. On MovieLens-1M's 2,000 events it was not worse; longer real histories "
        "are not measured: configs/sweeps/lengths.py compares it with dense attention"
    )
