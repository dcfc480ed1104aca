"""Evaluates the best checkpoint of a run again, on this machine.

    python -m experiments.evaluate --workdir=runs/yelp
    python -m experiments.evaluate --workdir=runs/yelp --last=5,10,20,40,80,160,320
    python -m experiments.evaluate --workdir=runs/yelp --shuffle

The config is the run's own. --last asks the same users for the same targets, but shows the model
the last events of each history alone: how stable it is across lengths, which buckets of different
users do not tell. --shuffle shows it the same events in random order: what their order is worth.
Either way the same items are ranked.

    python -m experiments.evaluate --workdir=runs/dense --config.model.attention=ltis \
        --config.model.selector=oracle

Values of the config that are set here hold for this evaluation. Parameters of the same name are the
run's, others are at their initial values: above, a model that learned with dense attention reads
the blocks that a selector chooses.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from flax import nnx

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
    arguments, overrides = parser.parse_known_args(argv)
    workdir, lengths = pathlib.Path(arguments.workdir), _histories.read_lengths(arguments.last)
    if lengths and arguments.shuffle:
        raise UserError("--last and --shuffle are two different tests: give one of them")
    show: Callable[..., str] = _results.table
    if lengths or arguments.shuffle:
        measured, show = perturbed(workdir, arguments.split, lengths, overrides), _histories.table
    else:
        measured = evaluate(workdir, arguments.split, overrides)
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


def evaluate(workdir: pathlib.Path, part: str, overrides: Sequence[str] = ()) -> dict:
    """Measures the best checkpoint of a run.

    Args:
      workdir: Folder of the run.
      part: "valid" or "test".
      overrides: `--config.key=value`, to evaluate with another config than the run's.

    Returns:
      What `_results.table` takes.

    Raises:
      UserError: No run, no checkpoint of it that is whole, or overrides that its parameters do not
        fit.
    """
    run = _open(workdir, part, overrides)
    ranks = run.evaluation.rank(run.evaluator, run.params)
    return {
        "title": run.title,
        "model": run.evaluation.summarize(ranks),
        "popularity": run.evaluation.popularity(),
        "by_length": run.evaluation.by_length(ranks),
        "by_popularity": run.evaluation.by_popularity(ranks),
    }


def perturbed(
    workdir: pathlib.Path, part: str, lengths: Sequence[int], overrides: Sequence[str] = ()
) -> dict:
    """Measures the best checkpoint of a run on histories cut short, or else out of order.

    Args:
      workdir: Folder of the run.
      part: "valid" or "test".
      lengths: Events of a history to show; none = all that the model sees, in random order.
      overrides: As in `evaluate`.

    Returns:
      What `_histories.table` takes.

    Raises:
      UserError: As in `evaluate`.
    """
    run = _open(workdir, part, overrides, with_coverage=False)

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


def _open(
    workdir: pathlib.Path, part: str, overrides: Sequence[str], *, with_coverage: bool = True
) -> Run:
    """Compiles the programs and restores the best checkpoint."""
    trained = _workdir.read_config(workdir)
    config = trained.copy_and_resolve_references()
    _cli.apply_overrides(config, overrides)
    interactions, split = _setup.load_data(config)
    mesh = sharding.make_mesh()
    make_model = _setup.model_maker(config, interactions.num_items)
    graphdef, like = abstract_params(make_model, mesh)
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
        _, stored = abstract_params(_setup.model_maker(trained, interactions.num_items), mesh)
        params = checkpoints.restore_params(progress["best_step"], stored)
    if params is None:
        raise UserError(f"{workdir} holds no whole checkpoint of step {progress['best_step']}")
    if overrides:
        params = _carry_over(params, make_model, like)
    title = (
        f"{interactions.name}: {part} of {config.model.attention} attention after step "
        f"{progress['best_step']:,}"
    )
    return Run(config, interactions, split, part, title, mesh, evaluation, evaluator, params)


def _carry_over(params: Any, make_model: Callable[[], nnx.Module], like: Any) -> Any:
    """Returns the initial parameters of a model, with those in their place that another has too."""
    initial = dict(nnx.to_flat_state(nnx.state(make_model(), nnx.Param)))
    trained = dict(nnx.to_flat_state(params))
    for path in initial.keys() & trained.keys():
        own, other = initial[path].shape, trained[path].shape
        if own != other:
            raise UserError(
                f"the run's parameter {'.'.join(map(str, path))} has the shape {other}, not {own}: "
                "sizes of parameters must stay as they are in the run's config.json"
            )
        initial[path] = trained[path]
    where = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.device_put(nnx.from_flat_state(initial), where)


if __name__ == "__main__":
    _cli.run(main)
