"""Asks a trained model the same questions with other histories: cut short, or out of order."""

from collections.abc import Callable, Sequence

import numpy as np

from blossom_jax.buckets import history_lengths
from blossom_jax.data.interactions import Interactions
from blossom_jax.data.perturb import shuffle_histories
from blossom_jax.data.split import Targets
from blossom_jax.errors import UserError
from blossom_jax.protocol_metrics import Ranks, summarize
from experiments import _columns, _results

Rank = Callable[[Interactions, int], Ranks]  # of a log, seeing so many events
_SEEDS = 3  # orders to try, since one may be lucky


def read_lengths(text: str) -> list[int]:
    """Reads the numbers of `--last`, in ascending order; none of "".

    Raises:
      UserError: What is not a list of whole numbers from 1 up.
    """
    try:
        lengths = sorted({int(word) for word in text.split(",")}) if text else []
    except ValueError:
        lengths = [0]
    if lengths and lengths[0] < 1:
        raise UserError(f"--last={text} must be numbers of events from 1 up: --last=5,10,20,40")
    return lengths


def cut_short(
    rank: Rank,
    interactions: Interactions,
    targets: Targets,
    lengths: Sequence[int],
    *,
    max_length: int,
    ks: Sequence[int],
) -> list[dict]:
    """Measures a model that sees the last events of each history alone.

    Every row is of the same users and targets, and ranks the same items: what is out of the
    ranking is the whole history still.

    Args:
      rank: Ranks the targets of a log with so many events before each to see.
      interactions: The log.
      targets: The users and their targets.
      lengths: Events to see; those from `max_length` on are what the last row has.
      max_length: Events that the model sees at most.
      ks: Where rankings are cut off.

    Returns:
      A dict for each length and then for `max_length`: "histories" (which events are seen), "last",
      "changed" (the share of histories that lose events by it), and the metrics of `summarize`.
    """
    had = history_lengths(interactions, targets)
    seen = [*(length for length in lengths if length < max_length), max_length]
    return [
        {
            "histories": f"last {last:,}",
            "last": last,
            "changed": float(np.mean(had > last)),
            **summarize(rank(interactions, last), ks),
        }
        for last in seen
    ]


def out_of_order(
    rank: Rank,
    interactions: Interactions,
    targets: Targets,
    *,
    max_length: int,
    ks: Sequence[int],
) -> list[dict]:
    """Measures a model on histories as they are, and on the same events in random order.

    Args:
      rank: As in `cut_short`, and so on.
      interactions: Likewise.
      targets: Likewise.
      max_length: Likewise.
      ks: Likewise.

    Returns:
      Rows as of `cut_short`: one for histories in order, and one for each of 3 random orders.
    """
    had = history_lengths(interactions, targets)
    orders = {"in order": interactions} | {
        f"shuffled, seed {seed}": shuffle_histories(
            interactions, targets, last=max_length, seed=seed
        )
        for seed in range(_SEEDS)
    }
    return [
        {
            "histories": name,
            "last": max_length,
            "changed": float(np.mean(had > 1)) if log is not interactions else 0.0,
            **summarize(rank(log, max_length), ks),
        }
        for name, log in orders.items()
    ]


def table(title: str, rows: Sequence[dict], reference: dict) -> str:
    """Returns the rows as text, each beside its share of a reference's metric.

    Args:
      title: First line.
      rows: From `cut_short` or `out_of_order`.
      reference: One of them, of the histories as they are.
    """
    k = _results.headline(reference)
    shown = [f"{rule}/{name}@{k}" for rule in ("full", "full_keep") for name in ("recall", "ndcg")]
    lines = [("histories", "changed", *shown, "of all")]
    for row in rows:
        whole = reference[shown[1]]
        share = f"{row[shown[1]] / whole:.1%}" if whole else "-"
        lines.append(
            (
                row["histories"],
                f"{row['changed']:.1%}",
                *(f"{row[name]:.4f}" for name in shown),
                share,
            )
        )
    return "\n".join([title, "", *_columns.align(lines)])
