"""Shows what a run measured."""

from collections.abc import Sequence
from typing import Any

from experiments import _protocol
from experiments._columns import align

_HEADLINE = 10  # where the printed metrics are cut off, if it was measured


def describe_run(results: dict) -> str:
    """Returns the table of what stands in results.json, which has the other cut-offs too.

    A run of an earlier version may lack some of it; then so does the table.
    """
    title = (
        f"{results['dataset']}: test of {results['model']} after step "
        f"{results['best_step']:,} of {results['steps']:,}; trained for "
        f"{results['train_seconds']:,.0f} s on {results['device']}"
    )
    return table(
        title,
        results["test"],
        results["popularity"],
        results.get("test_by_length", ()),
        results.get("test_by_popularity", ()),
        results["protocol"],
    )


def table(
    title: str,
    model: dict[str, float],
    popularity: dict[str, float],
    by_length: Sequence[dict[str, float]],
    by_popularity: Sequence[dict[str, float]],
    protocol: dict[str, Any],
) -> str:
    """Returns a model's metrics beside popularity's, those by bucket of users, and the protocol.

    Shown are those at the headline's cutoff, and what chose the checkpoint.

    Args:
      title: First line.
      model: Metrics by name, from `protocol_metrics.summarize`.
      popularity: Likewise.
      by_length: From `buckets.by_length`.
      by_popularity: From `buckets.by_popularity`.
      protocol: From `_protocol.make_card`.
    """
    k = headline(model)
    rows = [["", "model", "popularity", "ratio"]]
    names = [name for name in model if name.endswith(f"@{k}")]
    chooses = protocol.get("chosen_by", "").rpartition(" ")[2]
    if chooses in model and chooses not in names:
        names.insert(0, chooses)
    for name in names:
        rows.append([name, f"{model[name]:.4f}", *_beside(name, model, popularity)])
    parts = [
        "\n".join(align(rows)),
        _by_bucket("history length", "length", by_length, k),
        _by_bucket("target trained on", "count", by_popularity, k),
        _protocol.describe(protocol),
    ]
    return "\n\n".join([title, *(part for part in parts if part)])


def headline(metrics: dict[str, float]) -> int:
    """Returns where the metrics that are shown are cut off: at 10 if that was measured."""
    ks = [int(name.partition("@")[2]) for name in metrics if "@" in name]
    return _HEADLINE if _HEADLINE in ks else max(ks)


def _beside(name, model, popularity):
    """Returns popularity's value and the model's ratio to it, "-" for what there is not."""
    if name not in popularity:
        return "-", "-"
    # An estimate can be near 0, or below: a ratio of estimates would say nothing. Nor would one of
    # coverages: popularity recommends a handful of items.
    measured = "corrected" not in name and "coverage" not in name and popularity[name] > 0
    ratio = f"{model[name] / popularity[name]:.2f}" if measured else "-"
    return f"{popularity[name]:.4f}", ratio


def _by_bucket(title, name, buckets, k):
    if not buckets:
        return ""
    shown = (f"full/ndcg@{k}", f"full_keep/ndcg@{k}")
    rows = [[title, "users", *shown]]
    for bucket in buckets:
        values = f"{bucket[f'min_{name}']}-{bucket[f'max_{name}']}"
        metrics = (f"{bucket[metric]:.4f}" for metric in shown)
        rows.append([values, f"{bucket['num_users']:,}", *metrics])
    return "\n".join(align(rows))
