"""Writes one HTML page, pictures inside, about finished runs and sweeps.

    python -m experiments.report runs/yelp
    python -m experiments.report runs/yelp runs/yelp_dense runs/yelp_sweep --output=report.html

It shows learning curves, the results with intervals, metrics by length of history and by popularity
of the target, cost against accuracy and, of models with a gate or a selection, what these decide.
The page is DIR/report.html of the first folder, unless --output names another file.
"""

import pathlib
from collections.abc import Sequence

from blossom_jax.errors import UserError
from experiments import _cli
from experiments.report import collect


def main(argv: Sequence[str]) -> None:
    """Writes the page."""
    parser = _cli.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("workdir", nargs="+", metavar="DIR", help="folder of a run or of a sweep")
    parser.add_argument("--output", metavar="FILE.html", help="the page")
    parser.add_argument("--metric", metavar="NAME", help="to draw, as full/ndcg@10")
    arguments = parser.parse_args(argv)
    workdirs = [pathlib.Path(each) for each in arguments.workdir]
    output = pathlib.Path(arguments.output or workdirs[0] / "report.html")
    try:
        from experiments.report import page
    except ImportError:
        raise UserError('the report needs matplotlib: pip install -e ".[report]"') from None
    found = collect.collect(workdirs, arguments.metric)
    output.write_text(page.render(found), encoding="utf-8")
    print(output)


if __name__ == "__main__":
    _cli.run(main)
