"""Evaluates the best checkpoint of a run again, on this machine.

    python -m experiments.evaluate --workdir=runs/yelp

The config is the run's own.
"""

import contextlib
import json
import pathlib
from collections.abc import Sequence

from blossom_jax import sharding
from blossom_jax.checkpoint import Checkpoints
from blossom_jax.errors import UserError
from blossom_jax.train_step import abstract_params
from experiments import _cli, _evaluation, _protocol, _results, _setup, _workdir


def main(argv: Sequence[str]) -> None:
    """Prints the metrics of the best checkpoint."""
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="targets to ask")
    parser.add_argument("--json", action="store_true", help="print every metric, as JSON")
    arguments = parser.parse_args(argv)
    measured = evaluate(pathlib.Path(arguments.workdir), arguments.split)
    print(json.dumps(measured, indent=2) if arguments.json else _results.table(**measured))


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
    config = _workdir.read_config(workdir)
    interactions, split = _setup.load_data(config)
    mesh = sharding.make_mesh()
    graphdef, like = abstract_params(_setup.model_maker(config, interactions.num_items), mesh)
    evaluation = _evaluation.Evaluation(config, interactions, split, part, mesh, with_coverage=True)
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
    ranks = evaluation.rank(evaluator, params)
    return {
        "title": f"{interactions.name}: {part} of {config.model.attention} attention after step "
        f"{progress['best_step']:,}",
        "model": evaluation.summarize(ranks),
        "popularity": evaluation.popularity(),
        "by_length": evaluation.by_length(ranks),
        "by_popularity": evaluation.by_popularity(ranks),
        "protocol": _protocol.make_card(config, interactions, split),
    }


if __name__ == "__main__":
    _cli.run(main)
