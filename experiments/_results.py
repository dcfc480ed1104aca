"""Shows what a run measured."""

from collections.abc import Iterable, Iterator, Sequence

_HEADLINE = 10  # where the printed metrics are cut off, if it was measured


def describe_run(results: dict) -> str:
    """Returns the table of what stands in results.json, which has the other cut-offs too."""
    title = (
        f"{results['dataset']}: test of {results['model']} after step "
        f"{results['best_step']:,} of {results['steps']:,}; trained for "
        f"{results['train_seconds']:,.0f} s on {results['device']}"
    )
    return table(
        title,
        results["test"],
        results["popularity"],
        results["test_by_length"],
        results["test_by_popularity"],
    )


def table(
    title: str,
    model: dict[str, float],
    popularity: dict[str, float],
    by_length: Sequence[dict[str, float]],
    by_popularity: Sequence[dict[str, float]],
) -> str:
    """Returns a model's metrics beside popularity's, and those by bucket of users.

    Args:
      title: First line.
      model: Metrics by name, from `evaluate.summarize`.
      popularity: Likewise.
      by_length: From `buckets.by_length`.
      by_popularity: From `buckets.by_popularity`.
    """
    k = headline(model)
    rows = [("", "model", "popularity", "ratio")]
    for name in (name for name in model if name.endswith(f"@{k}")):
        # An estimate can be near 0, or below: a ratio of estimates would say nothing.
        measured = "corrected" not in name and popularity[name] > 0
        ratio = f"{model[name] / popularity[name]:.2f}" if measured else "-"
        rows.append((name, f"{model[name]:.4f}", f"{popularity[name]:.4f}", ratio))

    lengths = _by_bucket("history length", "length", by_length, k)
    counts = _by_bucket("target trained on", "count", by_popularity, k)
    return "\n".join([title, "", *align(rows), "", *align(lengths), "", *align(counts)])


def headline(metrics: dict[str, float]) -> int:
    """Returns where the metrics that are shown are cut off: at 10 if that was measured."""
    ks = [int(name.partition("@")[2]) for name in metrics if "@" in name]
    return _HEADLINE if _HEADLINE in ks else max(ks)


def _by_bucket(title, name, buckets, k):
    shown = (f"full/ndcg@{k}", f"full_keep/ndcg@{k}")
    yield title, "users", *shown
    for bucket in buckets:
        values = f"{bucket[f'min_{name}']}-{bucket[f'max_{name}']}"
        yield values, f"{bucket['num_users']:,}", *(f"{bucket[metric]:.4f}" for metric in shown)


def align(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yields rows of cells as lines: the first column to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells])
