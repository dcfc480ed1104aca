"""Draws how time and memory grow."""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from blossom_jax.errors import UserError

# Ours in warm colours and thick lines, what it is compared with in cool ones and thin lines.
_OURS = ("#c2416b", "#e08e45", "#8a2f5c", "#d9a5b3", "#b5651d", "#5b1a3a")
_OTHERS = ("#3d5a80", "#6b9080", "#7f8fa9", "#4d4d4d", "#9bb1c9", "#b0b0a0")


class Panel(NamedTuple):
    """One quantity against one size, log-log.

    Attributes:
      records: Measurements; of a size and a contender, the last one counts.
      x: Field of the size.
      x_label: What the size is.
      base: Of the logarithm that the sizes are drawn by.
      y: Field of the quantity; where it is missing or zero, nothing is drawn.
      unit: What a 1 on the axis stands for.
      title: What the quantity is, and its unit.
    """

    records: Sequence[dict]
    x: str
    x_label: str
    base: int
    y: str
    unit: float
    title: str


def draw(records: Sequence[dict], path: str) -> None:
    """Draws forward-and-backward milliseconds and temporary MiB of attention against length.

    Args:
      records: Measurements of `attention.py`.
      path: File to write; its suffix names the format.

    Raises:
      UserError: matplotlib is not installed, or does not know the format.
    """
    records = [r for r in records if r["measured"] == "forward_backward"]
    panel = (records, "length", "history length, tokens", 2)
    panels = [
        Panel(*panel, "seconds", 1e-3, "Time, ms"),
        Panel(*panel, "temporary_bytes", 2**20, "Temporary memory, MiB"),
    ]
    title = _title(records) if records else ""
    is_ours = {r["attention"]: r["attention"].startswith("blossom") for r in records}
    draw_panels(panels, "attention", is_ours, _label, title, path)


def draw_panels(
    panels: Sequence[Panel],
    kind: str,
    is_ours: dict[str, bool],
    label: Callable[[str], str],
    title: str,
    path: str,
) -> None:
    """Draws panels, two in a row, with one legend.

    Args:
      panels: What to draw.
      kind: Field of the contender's name.
      is_ours: Which contenders are ours, by name.
      label: Turns a name into what the legend says.
      title: Above all panels.
      path: As in `draw`.

    Raises:
      UserError: As in `draw`.
    """
    rows = -(-len(panels) // 2)
    figure = make_figure(9.5, 0.8 + 3.4 * rows)
    styles = _styles(is_ours)
    known = {}
    for axes, panel in zip(figure.subplots(rows, 2, squeeze=False).flat, panels, strict=True):
        _panel(axes, panel, kind, styles)
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            known[label(name)] = handle
    figure.suptitle(title, fontsize=10)
    figure.legend(known.values(), known, loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def make_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib Figure of so many inches.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError('--plot needs matplotlib: pip install -e ".[dev]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: str | pathlib.Path) -> None:
    """Writes a figure in the format that the file's suffix names.

    Raises:
      UserError: matplotlib does not know the format.
    """
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


def _panel(axes, panel, kind, styles) -> None:
    sizes = sorted({record[panel.x] for record in panel.records})
    for name, style in styles.items():
        points = {
            record[panel.x]: record[panel.y] / panel.unit
            for record in panel.records
            if record[kind] == name and record[panel.y]
        }
        if points:
            axes.plot(*zip(*sorted(points.items()), strict=True), label=name, **style)
    axes.set_xscale("log", base=panel.base)
    axes.set_yscale("log")
    axes.set_xlabel(panel.x_label)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xticks(sizes, [_short(size) for size in sizes], minor=False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.minorticks_off()
    _widen(axes)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _widen(axes) -> None:
    """Shows whole powers of ten, so that the axis has at least two numbers."""
    low, high = axes.get_ylim()
    axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))


def _styles(is_ours) -> dict[str, dict]:
    ours = [name for name, mine in is_ours.items() if mine]
    others = [name for name, mine in is_ours.items() if not mine]
    thick = {"linewidth": 2.4, "marker": "o", "markersize": 5, "zorder": 3}
    thin = {"linewidth": 1.4, "marker": "s", "markersize": 3.5}
    styles = {}
    for group, colours, style in ((ours, _OURS, thick), (others, _OTHERS, thin)):
        for n, name in enumerate(group):
            styles[name] = style | {"color": colours[n % len(colours)]}
    return styles


def _label(name: str) -> str:
    kind, _, rest = name.partition("_")
    library, _, split = rest.partition(":")
    heads = " ({} x {})".format(*split.split("x")) if split else ""
    return f"{kind.capitalize()}, {library}{heads}"


def _short(size: int) -> str:
    if size % 10**6 == 0:
        return f"{size // 10**6}M"
    if size % 1000 == 0:
        return f"{size:,}"
    return f"{size // 1024}k" if size % 1024 == 0 else str(size)
