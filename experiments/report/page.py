"""Puts tables and pictures on one HTML page, which needs no other file."""

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure

from blossom_jax.errors import UserError
from experiments import _protocol
from experiments.report import decisions, figures
from experiments.report.collect import Found, Series
from experiments.sweep import comparison

_STYLE = """
body { font: 15px/1.5 sans-serif; color: #33312e; max-width: 1000px; margin: 2em auto; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
img { max-width: 100%; } pre { background: #f6f5f2; padding: 1em; overflow-x: auto; }
table { border-collapse: collapse; font-size: .88em; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #e5e2dc; }
th:first-child, td:first-child { text-align: left; }
p.note { color: #6b675f; }
"""
_BUCKETS = (
    ("length", "test_by_length", "events in the history", "By length of history"),
    ("count", "test_by_popularity", "times the target was trained on", "By popularity of target"),
)


def render(found: Found) -> str:
    """Returns the page."""
    names = dict.fromkeys(run.results["dataset"] for each in found.series for run in each.runs)
    title = f"{', '.join(names)}: {found.metric}"
    sections = "\n".join(_sections(found))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(title)}</title>"
        f"<style>{_STYLE}</style></head><body>\n<h1>{_text(title)}</h1>\n{sections}\n</body></html>\n"
    )


def _sections(found: Found) -> Iterator[str]:
    yield "<h2>Results</h2>"
    yield _results(found)
    yield "<h2>Learning curves</h2>"
    yield _picture(figures.curves(found.series, found.metric))
    for name, key, below, title in _BUCKETS:
        shown = [each for each in found.series if all(run.results.get(key) for run in each.runs)]
        yield f"<h2>{title}</h2>"
        if not shown:
            yield _note("These runs are of a version that did not measure it.")
            continue
        drawn = figures.buckets(shown, found.metric, key=key, name=name, title=below)
        yield _picture(drawn)
        yield _note(
            "Bars are 95% intervals over seeds, where there are several; those of two seeds may "
            "leave the picture. Buckets compare different users: only models may be compared, at "
            "one place of the axis."
        )
    yield "<h2>Cost against accuracy</h2>"
    yield _picture(figures.cost(found.series, found.metric))
    for each in found.series:
        yield from _decisions(each)
    yield "<h2>Protocol</h2>"
    cards = dict.fromkeys(
        _protocol.describe(run.results["protocol"]) for each in found.series for run in each.runs
    )
    yield "\n".join(f"<pre>{_text(card)}</pre>" for card in cards if card)


def _results(found: Found) -> str:
    kept = [name for name in comparison.SHOWN if all(name in x.metrics for x in found.lines)]
    shown = list(dict.fromkeys([found.metric, *kept]))
    head = ["", "seeds", *shown, "seconds", "difference, 95% interval", "p (Holm)", "verdict"]
    rows = [
        [
            each.name,
            str(len(line.seeds)),
            *(comparison.interval(*line.metrics[name]) for name in shown),
            f"{line.seconds:,.0f}",
            *comparison.describe_comparison(line)[:2],
            line.verdict,
        ]
        for each, line in zip(found.series, found.lines, strict=True)
    ]
    first = found.series[0].runs[0].results
    popularity = first.get("popularity", {})
    measured = [f"{popularity[name]:.4f}" if name in popularity else "" for name in shown]
    rows.append(["popularity", "", *measured, "", "", "", ""])
    if not found.reference:
        return _table([row[:-3] for row in [head, *rows]])
    notes = comparison.explain(found.lines, found.reference, found.metric)
    return _table([head, *rows]) + _note(notes)


def _decisions(series: Series) -> Iterator[str]:
    """Shows what the first run of a series decides, or why that cannot be shown."""
    if series.runs[0].results["model"] in ("dense", "stis"):
        return  # nothing is decided
    try:
        decided = decisions.decide(series.runs[0])
    except UserError as error:
        yield f"<h2>What {_text(series.name)} decides</h2>" + _note(f"Cannot be shown: {error}")
        return
    if decisions.has(decided, "gates"):
        yield f"<h2>Gates of {_text(series.name)}</h2>"
        yield _picture(decisions.draw_gates(decided))
        yield _note(
            f"Mean over {len(decided.lengths)} users of the test, seed "
            f"{series.runs[0].results['seed']}. By length: at the last event, which predicts."
        )
    if decisions.has(decided, "slots"):
        yield f"<h2>What {_text(series.name)} selects</h2>"
        yield _picture(decisions.draw_selection(decided))
        yield _note(
            "Of the longest histories. Blocks before the line are there to be selected; the own "
            "block, at the line, is always read. Below: what the last event selects, by raw id."
        )
        yield "".join(_selected_items(decided, user) for user in decisions.longest(decided))


def _selected_items(decided: decisions.Decided, user: int) -> str:
    rows = [["layer", "block", "items"]]
    for layer, block, items in decisions.last_selection(decided, user):
        rows.append([str(layer), str(block), " ".join(items)])
    return f"<p>User {_text(str(decided.user_ids[user]))}</p>{_table(rows)}"


def _picture(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<p><img alt="" src="data:image/png;base64,{data}"></p>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [line(row, "td") for row in rows[1:]]
    return "\n".join(["<table>", line(rows[0], "th"), *body, "</table>"])


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


_text: Callable[[str], str] = html.escape
