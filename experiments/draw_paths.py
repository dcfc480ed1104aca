"""Draws which events the two paths of Blossom attention read: the picture in the README.

python -m experiments.draw_paths --output docs/paths.svg

The history is made up: a user who comes and goes between four interests. The rest is not: values
are unit vectors, so that what the ops return is the weight that each query gives to each key.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch, Rectangle
from matplotlib.path import Path

from experiments import _cli
from pallas_kernels import block_selection, power_attention, selected_attention

LENGTH, BLOCK, NUM_SELECTED, WINDOW = 64, 8, 2, 4
QUERY = 44  # the one that is followed through both paths and the gate

LONG, LONG_LIGHT = "#b83b6a", "#ecaec4"
SHORT, SHORT_LIGHT = "#2f5d8a", "#8fb6da"
INTERESTS = ("#dba63f", "#86a468", "#9382b4", "#b58a6a")
INK, FAINT, FUTURE = "#33312e", "#85817b", "#f4f3f0"
STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along: the same picture everywhere
    "font.size": 9,
    "text.color": INK,
    "svg.hashsalt": "paths",
}
CENTRED: dict[str, Any] = {"ha": "center", "va": "center"}


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output",
        type=_cli.writable,
        default="docs/paths.svg",
        metavar="FILE",
        help="svg, png, pdf",
    )
    output = parser.parse_args(argv).output
    undated = {"Date": None} if output.suffix == ".svg" else None
    with matplotlib.rc_context(STYLE):
        draw(interests()).savefig(output, dpi=200, metadata=undated)


def interests() -> Int[np.ndarray, "L"]:
    """Returns the interest, one of four, that each event of the history belongs to."""
    order = (0, 1, 2, 0, 3, 1, 0, 2, 1, 3)
    stays = (7, 10, 6, 9, 5, 3, 8, 5, 6, 5)
    return np.repeat(order, stays)


def attended(interest: Int[np.ndarray, "L"]) -> tuple[Bool[np.ndarray, "L L"], ...]:
    """Returns which keys (columns) each query (row) reads, on the long and the short path."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=(LENGTH, LENGTH))
    events = jnp.asarray(np.eye(LENGTH)[interest] * 3 + noise, jnp.float32)
    q = k = events[None, :, None]  # [1, L, 1, L]
    v = jnp.eye(LENGTH)[None, :, None]
    positions = jnp.arange(LENGTH)[None]
    summary_keys = k.reshape(1, -1, BLOCK, 1, LENGTH).mean(2)
    slots, probability = block_selection(
        q, summary_keys, positions, block_size=BLOCK, num_selected=NUM_SELECTED
    )
    long = selected_attention(q, k, v, slots, probability, positions, block_size=BLOCK)
    short = power_attention(q, k, v, positions, window=WINDOW)
    return np.asarray(long[0, :, 0]) > 0, np.asarray(short[0, :, 0]) > 0


def draw(interest: Int[np.ndarray, "L"]) -> Figure:
    """Draws both paths for one history and, between them, the gate that weighs them."""
    long, short = attended(interest)
    query, key = np.indices(long.shape)
    block = key // BLOCK
    own, near = query // BLOCK == block, query - key < WINDOW
    figure = Figure(figsize=(10, 4.35), facecolor="white")
    left, middle, right = (figure.add_axes((x, 0.09, 0.3, 0.69)) for x in (0.045, 0.355, 0.67))
    _panel(left, "Long-term path", interest)
    _layer(left, 0, "own block", long & own, LONG_LIGHT)
    selected = (long & ~own) * (block + 1)  # numbered, so that neighbours stay apart
    _layer(left, 21, f"the {NUM_SELECTED} blocks most like the query", selected, LONG)
    _panel(right, "Short-term path", interest)
    _layer(right, 0, f"last {WINDOW} events", short & near, SHORT_LIGHT)
    _layer(right, 25, "4, 8, 16, 32, ... events ago", short & ~near, SHORT)
    left.plot((QUERY + 1, LENGTH + 1), (QUERY + 0.5,) * 2, color=LONG, linewidth=1.3, clip_on=False)
    _gate(middle)
    return figure


def _panel(axes: Axes, title: str, interest: Int[np.ndarray, "L"]) -> None:
    """Prepares a square of queries (from top to bottom) and keys (from left to right)."""
    axes.set(xlim=(0, LENGTH), ylim=(LENGTH, 0), aspect="equal")
    axes.set_axis_off()
    axes.add_patch(_bars([(i + 1, i, LENGTH - i - 1) for i in range(LENGTH - 1)], FUTURE))
    axes.text(0, -11.6, title, fontsize=12.5, fontweight="bold", va="center")
    keys = "keys: the history, oldest first"
    axes.text(LENGTH / 2, LENGTH + 2.4, keys, color=FAINT, **CENTRED)
    axes.text(-4.6, LENGTH / 2, "queries", color=FAINT, rotation=90, **CENTRED)
    for i, colour in enumerate(INTERESTS[each] for each in interest):
        _box(axes, i, -2.4, 1, 1.6, facecolor=colour)
        _box(axes, -2.4, i, 1.6, 1, facecolor=colour)
    _box(axes, 0, QUERY, QUERY + 1, 1, fill=False, edgecolor=INK, linewidth=1, zorder=3)


def _layer(axes: Axes, x: float, name: str, labels: np.ndarray, colour: str) -> None:
    """Draws every run of equal labels in a row as one bar, and names them all at `x`."""
    axes.add_patch(_bars(_runs(labels), colour, gap=0.12))
    _box(axes, x, -7.3, 2.4, 2.4, facecolor=colour)
    axes.text(x + 3.6, -6.1, name, va="center")


def _box(axes: Axes, x: float, y: float, width: float, height: float, **style) -> None:
    axes.add_patch(Rectangle((x, y), width, height, clip_on=False, **{"linewidth": 0} | style))


def _runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Returns (first column, row, length) of each run of equal labels other than 0."""
    runs = []
    for row, line in enumerate(labels):
        edges = np.flatnonzero(np.diff(line.astype(int), prepend=0, append=0)).tolist()
        runs += [(a, row, b - a) for a, b in zip(edges, edges[1:], strict=False) if line[a]]
    return runs


def _bars(bars: Sequence[tuple[int, int, int]], colour: str, gap: float = 0) -> PathPatch:
    """Makes one shape of many bars of height 1, which keeps the file small."""
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
    corners = [square * (n - 2 * gap, 1 - 2 * gap) + (x + gap, y + gap) for x, y, n in bars]
    codes = [Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY] * len(corners)
    return PathPatch(Path(np.concatenate(corners), codes), facecolor=colour, linewidth=0)


def _gate(axes: Axes) -> None:
    """Draws how the outlined query's two results become one."""
    axes.set(xlim=(0, LENGTH), ylim=(LENGTH, 0), aspect="equal")
    axes.set_axis_off()
    y, centre = QUERY + 0.5, LENGTH / 2
    for side, colour in ((-1, LONG), (1, SHORT)):
        x, panel = centre + side * 15, centre + side * 33.5
        _arrow(axes, (panel, y), (x, y), colour)
        _arrow(axes, (x, y), (centre, y), colour)
        _arrow(axes, (x, 24), (x, y), INK)
        _node(axes, x, y, "×", colour)
    _arrow(axes, (centre, y), (centre, 58), INK)
    _node(axes, centre, y, "+", INK)
    _box(axes, centre - 20, 14, 40, 10, facecolor="white", edgecolor=INK, linewidth=1.3, zorder=2)
    axes.text(centre, 17.3, "gate", fontweight="bold", **CENTRED)
    axes.text(centre, 21, "0 to 1 for each path and head", fontsize=8, **CENTRED)
    axes.text(centre, 58.5, "output of the outlined query", **CENTRED)
    caption = f"One history of {LENGTH} events,\ncoloured by the interest behind each"
    axes.text(centre, -1.6, caption, color=FAINT, linespacing=1.5, **CENTRED)


def _arrow(axes: Axes, begin, end, colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 8}
    axes.annotate("", end, begin, arrowprops=style, annotation_clip=False)


def _node(axes: Axes, x: float, y: float, sign: str, colour: str) -> None:
    axes.add_patch(
        Circle((x, y), 2.6, facecolor="white", edgecolor=colour, linewidth=1.3, zorder=4)
    )
    axes.text(x, y, sign, ha="center", va="center_baseline", fontsize=12, color=colour, zorder=5)


if __name__ == "__main__":
    _cli.run(main)
