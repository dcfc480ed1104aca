"""Evaluates the best checkpoint of a run again, another one, or an export, on this machine.

    python -m experiments.evaluate --workdir=runs/yelp
    python -m experiments.evaluate --workdir=runs/yelp --step=1400 --split=valid --json
    python -m experiments.evaluate --workdir=exports/yelp
    python -m experiments.evaluate --workdir=runs/yelp --last=5,10,20,40,80,160,320
    python -m experiments.evaluate --workdir=runs/yelp --shuffle
    python -m experiments.evaluate --workdir=runs/dense --config.model.attention=ltis

The config is the run's own. Of an export, it is the exported program that is measured.

--last asks the same users for the same targets, but shows the model the last events of each history
alone: how stable it is across lengths, which buckets of different users do not tell. --shuffle
shows it the same events in random order: what their order is worth. Either way the same items are
ranked.

Values of the config that are set here hold for this evaluation. Parameters of the same name are the
run's, others have their initial values: in the last command, a model that learned with dense
attention reads only the blocks that a selector chooses.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from flax import nnx

from blossom_jax import data, serving, sharding, trained_model
from blossom_jax import evaluate as ranking
from blossom_jax.errors import UserError
from blossom_jax.protocol_metrics import Ranks
from blossom_jax.train_step import abstract_params
from blossom_jax.trained_model import TrainedModel
from experiments import (
    _cli,
    _commit,
    _compile_cache,
    _evaluation,
    _histories,
    _protocol,
    _results,
    _setup,
    _workdir,
)


def main(argv: Sequence[str]) -> None:
    """Prints the metrics of a checkpoint or an export."""
    parser = _cli.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--workdir", required=True, type=_cli.folder, metavar="DIR", help="of a run, or an export")
    add("--step", type=int, metavar="N", help="of the checkpoint; default the best")
    add("--split", choices=("valid", "test"), default="test", help="targets to ask")
    add("--last", default="", metavar="N,..", help="show the last N events alone")
    add("--shuffle", action="store_true", help="show events in random order")
    add("--json", action="store_true", help="print every metric, as JSON")
    arguments, overrides = parser.parse_known_args(argv)
    _compile_cache.enable()
    lengths = _histories.read_lengths(arguments.last)
    if lengths and arguments.shuffle:
        raise UserError("--last and --shuffle are two different tests: give one of them")
    asked = pathlib.Path(arguments.workdir), arguments.split, arguments.step, overrides
    show: Callable[..., str] = _results.table
    if lengths or arguments.shuffle:
        measured, show = perturbed(*asked, lengths=lengths), _histories.table
    else:
        measured = evaluate(*asked)
    print(json.dumps(measured, indent=2) if arguments.json else show(**measured))


class Asked(NamedTuple):
    """A trained model, and what it is asked."""

    config: ml_collections.ConfigDict
    interactions: data.Interactions
    split: data.Split
    part: str
    mesh: jax.sharding.Mesh
    encode: Callable
    params: Any
    title: str


def evaluate(
    directory: pathlib.Path, part: str, step: int | None = None, overrides: Sequence[str] = ()
) -> dict:
    """Measures a checkpoint of a run, or an export.

    Args:
      directory: Folder of the run, or the export.
      part: "valid" or "test".
      step: Of the checkpoint; None takes the best.
      overrides: `--config.key=value`, to evaluate with another config than the run's.

    Returns:
      What `_results.table` takes.

    Raises:
      UserError: No run, no such checkpoint that is whole, other data than it was trained on, or
        overrides that its parameters do not fit.
    """
    commit = _commit.git_commit()
    asked = _open(directory, part, step, overrides)
    evaluation, evaluator = _prepare(asked, with_coverage=True)
    ranks = evaluation.rank(evaluator, asked.params)
    return {
        "title": asked.title,
        "model": evaluation.summarize(ranks),
        "popularity": evaluation.popularity,
        "by_length": evaluation.by_length(ranks),
        "by_popularity": evaluation.by_popularity(ranks),
        "protocol": _protocol.make_card(asked.config, asked.interactions, asked.split, commit),
    }


def perturbed(
    directory: pathlib.Path,
    part: str,
    step: int | None = None,
    overrides: Sequence[str] = (),
    *,
    lengths: Sequence[int],
) -> dict:
    """Measures a model on histories cut short, or else out of order.

    Args:
      directory: As in `evaluate`, and so on.
      part: Likewise.
      step: Likewise.
      overrides: Likewise.
      lengths: Events of a history to show; none = all that the model sees, in random order.

    Returns:
      What `_histories.table` takes.

    Raises:
      UserError: As in `evaluate`.
    """
    asked = _open(directory, part, step, overrides)
    _, evaluator = _prepare(asked, with_coverage=False)
    model = _setup.model_config(asked.config)

    def rank(interactions: data.Interactions, last: int) -> Ranks:
        config = asked.config.copy_and_resolve_references()
        config.model.max_length = last + model.appended
        evaluation = _evaluation.Evaluation(config, interactions, asked.split, part, asked.mesh)
        return evaluation.rank(evaluator, asked.params)

    questions = rank, asked.interactions, getattr(asked.split, part)
    sizes = {"max_length": model.history_length, "ks": asked.config.eval.ks}
    if lengths:
        rows = _histories.cut_short(*questions, lengths, **sizes)
        return {"title": asked.title, "rows": rows, "reference": rows[-1]}
    rows = _histories.out_of_order(*questions, **sizes)
    return {"title": asked.title, "rows": rows, "reference": rows[0]}


def _open(directory: pathlib.Path, part: str, step: int | None, overrides: Sequence[str]) -> Asked:
    config = _workdir.read_config(directory)
    _cli.apply_overrides(config, overrides)
    # An exported program is one for one device.
    if trained_model.is_export(directory):
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
    else:
        # The table may need its parts; users are split over whatever devices are left here.
        data, parts = config.mesh.data, config.mesh.model
        mesh = sharding.make_mesh(data if parts == -1 else -1, parts)
    model = trained_model.load(directory, step=step, mesh=mesh)
    interactions, split = _setup.load_data(config)
    _setup.check_data(interactions, model.data)
    if overrides:
        model = _with_config(model, config)
    title = (
        f"{interactions.name}: {part} of {_setup.model_config(config).name} after step "
        f"{model.step:,}"
    )
    return Asked(config, interactions, split, part, model.mesh, *_encoder(model), title)


def _prepare(
    asked: Asked, *, with_coverage: bool
) -> tuple[_evaluation.Evaluation, ranking.Evaluator]:
    config, log = asked.config, asked.interactions
    evaluation = _evaluation.Evaluation(
        config, log, asked.split, asked.part, asked.mesh, with_coverage=with_coverage
    )
    evaluator = _evaluation.make_evaluator(config, asked.encode, log.num_items, asked.mesh)
    evaluation.prepare(evaluator, asked.params)
    return evaluation, evaluator


def _encoder(model: TrainedModel) -> tuple[Callable, Any]:
    """Returns what `Evaluator` ranks by, and its parameters on the devices."""
    if not trained_model.is_export(model.directory):
        return ranking.encode_last(model.graphdef), model.params
    score, params = serving.last_scores(model.directory)
    return lambda params, batch: (score(params, batch), None), jax.device_put(
        params, sharding.replicated(model.mesh)
    )


def _with_config(model: TrainedModel, config: ml_collections.ConfigDict) -> TrainedModel:
    """Puts a model's parameters into one that another config describes."""
    if trained_model.is_export(model.directory):
        raise UserError("an export is one program, which no --config value can change")
    make_model = _setup.model_maker(config, model.catalogue.num_items)
    graphdef, like = abstract_params(make_model, model.mesh)
    params = dict(nnx.to_flat_state(nnx.state(make_model(), nnx.Param)))
    trained = dict(nnx.to_flat_state(model.params))
    for path in params.keys() & trained.keys():
        wanted, there = params[path].shape, trained[path].shape
        if wanted != there:
            raise UserError(
                f"{'.'.join(map(str, path))} has the shape {there} in the run, and {wanted} with "
                "these --config values: choose values that leave it as it is"
            )
        params[path] = trained[path]
    where = jax.tree.map(lambda leaf: leaf.sharding, like)
    placed = jax.device_put(nnx.from_flat_state(params), where)
    return dataclasses.replace(model, graphdef=graphdef, params=placed)


if __name__ == "__main__":
    _cli.run(main)
