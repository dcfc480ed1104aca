"""Draws how time and memory grow with length."""

from collections.abc import Sequence

from blossom_jax.errors import UserError

_COLOURS = ("#c2416b", "#3d5a80", "#7a8450", "#d08c2f", "#6c5b7b", "#4d4d4d")


def draw(records: Sequence[dict], path: str) -> None:
    """Draws forward-and-backward seconds and temporary bytes against length, log-log.

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
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    _panel(panels[0], records, "seconds", "seconds, forward and backward", 1)
    _panel(panels[1], records, "temporary_bytes", "temporary memory, MiB", 2**20)
    panels[0].legend(frameon=False)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"--plot={path}: {error}") from None


def _panel(axes, records, field, title, unit) -> None:
    names = dict.fromkeys(record["attention"] for record in records)
    lengths = sorted({record["length"] for record in records})
    for name, colour in zip(names, _COLOURS, strict=False):
        points = [
            (record["length"], record[field] / unit)
            for record in records
            if record["attention"] == name
            and record["measured"] == "forward_backward"
            and record[field]
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name.replace("_", ", "))
    axes.set(xscale="log", yscale="log", xlabel="length", title=title)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], minor=False)
    axes.minorticks_off()
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
