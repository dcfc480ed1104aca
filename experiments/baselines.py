"""Ranks the test targets in ways that learn nothing: what any model has to beat.

    python -m experiments.baselines --config=configs/ml_100k.py --workdir=runs/ml_100k_baselines

Neighbours of the last item and of the whole history; popularity in the last week, where there are
times; the last items and the user's own most frequent ones, where items repeat. Each is measured
under the rules of `experiments.train` and reported like a model, in WORKDIR/NAME/results.json, with
popularity beside it. Validation is asked too, though nothing is chosen by it.
"""

import pathlib
from collections.abc import Callable, Sequence

import jax
import ml_collections

from blossom_jax import sharding
from blossom_jax.baselines.rankers import RANKERS, make_rankers
from experiments import _cli, _commit, _evaluation, _record, _results, _setup, _workdir


def main(argv: Sequence[str]) -> None:
    """Prints the table of each ranking, and saves it."""
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--workdir", required=True, type=_cli.folder, metavar="DIR", help="folder of the results"
    )
    arguments = _cli.parse_with_config(parser, argv)
    workdir = pathlib.Path(arguments.workdir)
    for name in RANKERS:
        _workdir.check_config(workdir / name, arguments.config)
    for name, results in measure(arguments.config).items():
        _workdir.write_config(workdir / name, arguments.config)
        _workdir.write_results(workdir / name, results)
        print(_results.describe_run(results), end="\n\n")


def measure(config: ml_collections.ConfigDict) -> dict[str, dict]:
    """Returns by name what stands in the results.json of a run.

    Args:
      config: Its sections `data` and `eval` are read, and `model.max_length`.

    Raises:
      UserError: Something in the config or the data.
    """
    commit = _commit.git_commit()
    interactions, split = _setup.load_data(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    parts = {
        part: _evaluation.Evaluation(
            config, interactions, split, part, mesh, with_coverage=part == "test"
        )
        for part in ("valid", "test")
    }
    found = {}
    for name, ranker in make_rankers(interactions, split).items():
        evaluator = _evaluation.make_evaluator(
            config, _as_encoder(ranker.score), interactions.num_items, mesh, with_loss=False
        )
        params = jax.device_put(ranker.params, sharding.replicated(mesh))
        ranks = {
            part: evaluation.rank(evaluator, params, extend=ranker.extend)
            for part, evaluation in parts.items()
        }
        found[name] = _record.make_record(
            config,
            interactions,
            split,
            mesh,
            parts["test"],
            ranks["test"],
            commit,
            model=name,
            num_params=0,
            steps=0,
            best_step=0,
            train_seconds=0.0,
            valid=parts["valid"].summarize(ranks["valid"]),
        )
    return found


def _as_encoder(score: Callable) -> Callable:
    """Makes scores what an evaluator takes: those without a table."""
    return lambda params, batch: (score(params, batch), None)


if __name__ == "__main__":
    _cli.run(main)
