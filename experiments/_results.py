"""Shows what a run measured."""

from collections.abc import Iterator, Sequence

_HEADLINE = 10  # where the printed metrics are cut off, if it was measured


def describe_run(results: dict) -> str:
    """Returns the table of what stands in results.json, which has the other cut-offs too."""
    title = (
        f"{results['dataset']}: test of {results['model']} attention after step "
        f"{results['best_step']:,} of {results['steps']:,}; trained for "
        f"{results['train_seconds']:,.0f} s on {results['device']}"
    )
    return table(title, results["test"], results["popularity"], results["test_by_length"])


def table(
    title: str,
    model: dict[str, float],
    popularity: dict[str, float],
    by_length: Sequence[dict[str, float]],
) -> str:
    """Returns a model's metrics beside popularity's, and those by history length.

    Args:
      title: First line.
      model: Metrics by name, from `evaluate.summarize`.
      popularity: Likewise.
      by_length: From `evaluate.by_length`.
    """
    ks = [int(name.partition("@")[2]) for name in model if "@" in name]
    k = _HEADLINE if _HEADLINE in ks else max(ks)
    rows = [("", "BlossomRec", "popularity", "ratio")]
    for name in (name for name in model if name.endswith(f"@{k}")):
        # An estimate can be near 0, or below: a ratio of estimates would say nothing.
        measured = "corrected" not in name and popularity[name] > 0
        ratio = f"{model[name] / popularity[name]:.2f}" if measured else "-"
        rows.append((name, f"{model[name]:.4f}", f"{popularity[name]:.4f}", ratio))

    buckets = [("history length", "users", f"full/ndcg@{k}", f"full_keep/ndcg@{k}")]
    for bucket in by_length:
        lengths = f"{bucket['min_length']}-{bucket['max_length']}"
        full, keep = (f"{bucket[name]:.4f}" for name in buckets[0][2:])
        buckets.append((lengths, f"{bucket['num_users']:,}", full, keep))
    return "\n".join([title, "", *_align(rows), "", *_align(buckets)])


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells])
