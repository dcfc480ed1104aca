"""Evaluates the best checkpoint of a run again, on this machine.

    python -m experiments.evaluate --workdir=runs/yelp
    python -m experiments.evaluate --workdir=runs/yelp --last=5,10,20,40,80,160,320
    python -m experiments.evaluate --workdir=runs/yelp --shuffle

The config is the run's own. --last asks the same users for the same targets, but shows the model
the last events of each history alone: how stable it is across lengths, which buckets of different
users do not tell. --shuffle shows it the same events in random order: what their order is worth.
Either way the same items are ranked.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from blossom_jax import data, sharding
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.errors import UserError
from blossom_jax.evaluate import Evaluator, Ranks
from blossom_jax.train_step import abstract_params
from experiments import _cli, _evaluation, _histories, _results, _setup, _workdir


def main(argv: Sequence[str]) -> None:
    """Prints the metrics of the best checkpoint."""
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="targets to ask")
    parser.add_argument("--last", default="", metavar="N,..", help="show the last N events alone")
    parser.add_argument("--shuffle", action="store_true", help="show events in random order")
    parser.add_argument("--json", action="store_true", help="print every metric, as JSON")
    arguments = parser.parse_args(argv)
    workdir, lengths = pathlib.Path(arguments.workdir), _histories.read_lengths(arguments.last)
    if lengths and arguments.shuffle:
        raise UserError("--last and --shuffle are two different tests: give one of them")
    show: Callable[..., str] = _results.table
    if lengths or arguments.shuffle:
        measured, show = perturbed(workdir, arguments.split, lengths), _histories.table
    else:
        measured = evaluate(workdir, arguments.split)
    print(json.dumps(measured, indent=2) if arguments.json else show(**measured))


class Run(NamedTuple):
    """A trained model, and what it is asked."""

    config: ml_collections.ConfigDict
    interactions: data.Interactions
    split: data.Split
    part: str
    title: str
    mesh: jax.sharding.Mesh
    evaluation: _evaluation.Evaluation
    evaluator: Evaluator
    params: Any


def evaluate(workdir: pathlib.Path, part: str) -> dict:
    """Measures the best checkpoint of a run.

    Args:
      workdir: Folder of the run.
      part: "valid" or "test".

    Returns:
      What `_results.table` takes.

    Raises:
      UserError: No run, or no checkpoint of it that is whole.
    """
    run = _open(workdir, part)
    ranks = run.evaluation.rank(run.evaluator, run.params)
    return {
        "title": run.title,
        "model": run.evaluation.summarize(ranks),
        "popularity": run.evaluation.popularity(),
        "by_length": run.evaluation.by_length(ranks),
        "by_popularity": run.evaluation.by_popularity(ranks),
    }


def perturbed(workdir: pathlib.Path, part: str, lengths: Sequence[int]) -> dict:
    """Measures the best checkpoint of a run on histories cut short, or else out of order.

    Args:
      workdir: Folder of the run.
      part: "valid" or "test".
      lengths: Events of a history to show; none = all that the model sees, in random order.

    Returns:
      What `_histories.table` takes.

    Raises:
      UserError: As in `evaluate`.
    """
    run = _open(workdir, part, with_coverage=False)

    def rank(interactions: data.Interactions, last: int) -> Ranks:
        config = run.config.copy_and_resolve_references()
        with config.unlocked():
            config.model.max_length = last
        evaluation = _evaluation.Evaluation(config, interactions, run.split, run.part, run.mesh)
        return evaluation.rank(run.evaluator, run.params)

    asked = rank, run.interactions, getattr(run.split, part)
    sizes = {"max_length": run.config.model.max_length, "ks": run.config.eval.ks}
    if lengths:
        rows = _histories.cut_short(*asked, lengths, **sizes)
        return {"title": run.title, "rows": rows, "reference": rows[-1]}
    rows = _histories.out_of_order(*asked, **sizes)
    return {"title": run.title, "rows": rows, "reference": rows[0]}


def _open(workdir: pathlib.Path, part: str, *, with_coverage: bool = True) -> Run:
    """Compiles the programs and restores the best checkpoint."""
    config = _workdir.read_config(workdir)
    interactions, split = _setup.load_data(config)
    mesh = sharding.make_mesh()
    graphdef, like = abstract_params(_setup.model_maker(config, interactions.num_items), mesh)
    evaluation = _evaluation.Evaluation(
        config, interactions, split, part, mesh, with_coverage=with_coverage
    )
    evaluator = _evaluation.make_evaluator(config, graphdef, interactions.num_items, mesh)
    evaluation.prepare(evaluator, like)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        progress = checkpoints.latest_progress()
        if progress is None or not progress["best_step"]:
            raise UserError(f"{workdir} holds no checkpoint of a model that was evaluated")
        _setup.check_data(interactions, progress["data"])
        params = checkpoints.restore_params(progress["best_step"], like)
    if params is None:
        raise UserError(f"{workdir} holds no whole checkpoint of step {progress['best_step']}")
    title = (
        f"{interactions.name}: {part} of {config.model.attention} attention after step "
        f"{progress['best_step']:,}"
    )
    return Run(config, interactions, split, part, title, mesh, evaluation, evaluator, params)


if __name__ == "__main__":
    _cli.run(main)
