"""Evaluates the best checkpoint of a run again, another one, or an export, on this machine.

    python -m experiments.evaluate --workdir=runs/yelp
    python -m experiments.evaluate --workdir=runs/yelp --step=1400 --split=valid --json
    python -m experiments.evaluate --workdir=exports/yelp

The config is the run's own. Of an export, it is the exported program that is measured.
"""

import json
import pathlib
from collections.abc import Sequence

import jax

from blossom_jax import evaluate as ranking
from blossom_jax import serving, sharding, trained_model
from blossom_jax.trained_model import TrainedModel
from experiments import _cli, _evaluation, _protocol, _results, _setup, _workdir


def main(argv: Sequence[str]) -> None:
    """Prints the metrics of a checkpoint or an export."""
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a run, or an export")
    parser.add_argument("--step", type=int, metavar="N", help="of the checkpoint; default the best")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="targets to ask")
    parser.add_argument("--json", action="store_true", help="print every metric, as JSON")
    arguments = parser.parse_args(argv)
    measured = evaluate(pathlib.Path(arguments.workdir), arguments.split, arguments.step)
    print(json.dumps(measured, indent=2) if arguments.json else _results.table(**measured))


def evaluate(directory: pathlib.Path, part: str, step: int | None = None) -> dict:
    """Measures a checkpoint of a run, or an export.

    Args:
      directory: Folder of the run, or the export.
      part: "valid" or "test".
      step: Of the checkpoint; None takes the best.

    Returns:
      What `_results.table` takes.

    Raises:
      UserError: No run, no such checkpoint that is whole, or other data than it was trained on.
    """
    config = _workdir.read_config(directory)
    # An exported program is one for one device.
    devices = jax.devices()[:1] if trained_model.is_export(directory) else None
    model = trained_model.load(directory, step=step, mesh=sharding.make_mesh(devices=devices))
    interactions, split = _setup.load_data(config)
    _setup.check_data(interactions, model.data)
    evaluation = _evaluation.Evaluation(
        config, interactions, split, part, model.mesh, with_coverage=True
    )
    encode, params = _encoder(model)
    evaluator = _evaluation.make_evaluator(config, encode, interactions.num_items, model.mesh)
    evaluation.prepare(evaluator, params)
    ranks = evaluation.rank(evaluator, params)
    return {
        "title": f"{interactions.name}: {part} of {config.model.attention} attention after step "
        f"{model.step:,}",
        "model": evaluation.summarize(ranks),
        "popularity": evaluation.popularity(),
        "by_length": evaluation.by_length(ranks),
        "by_popularity": evaluation.by_popularity(ranks),
        "protocol": _protocol.make_card(config, interactions, split),
    }


def _encoder(model: TrainedModel):
    """Returns what `Evaluator` ranks by, and its parameters on the devices."""
    if not trained_model.is_export(model.directory):
        return ranking.encode_last(model.graphdef), model.params
    score, params = serving.last_scores(model.directory)
    return lambda params, batch: (score(params, batch), None), jax.device_put(
        params, sharding.replicated(model.mesh)
    )


if __name__ == "__main__":
    _cli.run(main)
