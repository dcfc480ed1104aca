"""Draws how time and memory grow with length."""

import math
from collections.abc import Sequence

from blossom_jax.errors import UserError

# Blossom in warm colours and thick lines, what it is compared with in cool ones and thin lines.
_BLOSSOM = ("#c2416b", "#e08e45", "#8a2f5c", "#d9a5b3")
_OTHERS = ("#3d5a80", "#6b9080", "#7f8fa9", "#4d4d4d", "#9bb1c9", "#b0b0a0")


def draw(records: Sequence[dict], path: str) -> None:
    """Draws forward-and-backward milliseconds and temporary MiB against length, log-log.

    Args:
      records: Measurements of `attention.py`.
      path: File to write; its suffix names the format.

    Raises:
      UserError: matplotlib is not installed, or does not know the format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('--plot needs matplotlib: pip install -e ".[dev]"') from None
    records = [r for r in records if r["measured"] == "forward_backward"]
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    _panel(panels[0], records, "seconds", 1e-3, "Time, ms")
    _panel(panels[1], records, "temporary_bytes", 2**20, "Temporary memory, MiB")
    if records:
        figure.suptitle(_title(records), fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    handles_of_all, labels_of_all = panels[1].get_legend_handles_labels()
    known = dict(zip(labels + labels_of_all, handles + handles_of_all, strict=True))
    figure.legend(known.values(), known, loc="outside lower center", ncols=4, frameon=False)
    try:
        figure.savefig(path, dpi=160)
    except ValueError as error:
        raise UserError(f"--plot={path}: {error}") from None


def _title(records) -> str:
    one = records[0]
    tokens = {record["rows"] * record["length"] for record in records}
    amount = f"{tokens.pop():,} tokens" if len(tokens) == 1 else f"{one['rows']} rows"
    heads = f"{one['heads']} query and {one['kv_heads']} key/value heads of {one['head_size']}"
    return f"Attention, forward and backward: {amount}, {heads}, {one['dtype']}"


def _panel(axes, records, field, unit, title) -> None:
    lengths = sorted({record["length"] for record in records})
    for name, style in _styles(records).items():
        points = {
            record["length"]: record[field] / unit
            for record in records
            if record["attention"] == name and record[field]
        }
        if points:
            axes.plot(*zip(*sorted(points.items()), strict=True), label=_label(name), **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("history length, tokens")
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xticks(lengths, [_short(length) for length in lengths], minor=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.minorticks_off()
    _widen(axes)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _widen(axes) -> None:
    """Shows whole powers of ten, so that the axis has at least two numbers."""
    low, high = axes.get_ylim()
    axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))


def _styles(records) -> dict[str, dict]:
    names = dict.fromkeys(record["attention"] for record in records)
    ours = [name for name in names if name.startswith("blossom")]
    others = [name for name in names if name not in ours]
    thick = {"linewidth": 2.4, "marker": "o", "markersize": 5, "zorder": 3}
    thin = {"linewidth": 1.4, "marker": "s", "markersize": 3.5}
    styles = {}
    for group, colours, style in ((ours, _BLOSSOM, thick), (others, _OTHERS, thin)):
        for n, name in enumerate(group):
            styles[name] = style | {"color": colours[n % len(colours)]}
    return styles


def _label(name: str) -> str:
    kind, _, rest = name.partition("_")
    library, _, split = rest.partition(":")
    heads = " ({} x {})".format(*split.split("x")) if split else ""
    return f"{kind.capitalize()}, {library}{heads}"


def _short(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
