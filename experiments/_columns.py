"""Rows as text."""

from collections.abc import Iterable, Iterator, Sequence


def align(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yields rows of cells as lines: the first column to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells])
