"""What stands in results.json, of a model that was trained or of a ranking that was not."""

import jax
import ml_collections

from blossom_jax import data
from blossom_jax.protocol_metrics import Ranks
from experiments import _evaluation, _protocol


def make_record(
    config: ml_collections.ConfigDict,
    interactions: data.Interactions,
    split: data.Split,
    mesh: jax.sharding.Mesh,
    test: _evaluation.Evaluation,
    ranks: Ranks,
    commit: str,
    **measured,
) -> dict:
    """Returns what stands in results.json.

    Args:
      config: Of the run.
      interactions: The log.
      split: Of the log.
      mesh: Devices that were used.
      test: What was asked.
      ranks: What the model answered.
      commit: From `_commit.git_commit`, read when the command began.
      **measured: By name, what only whoever ran the model knows.
    """
    return {
        "dataset": interactions.name,
        "num_users": interactions.num_users,
        "num_items": interactions.num_items,
        "seed": config.seed,
        "jax": jax.__version__,
        "device": device_name(mesh),
        "commit": commit,
        **measured,
        "test": test.summarize(ranks),
        "test_by_length": test.by_length(ranks),
        "test_by_popularity": test.by_popularity(ranks),
        "popularity": test.popularity,
        "protocol": _protocol.make_card(config, interactions, split, commit),
        "data": interactions.card,
    }


def device_name(mesh: jax.sharding.Mesh) -> str:
    """Says how many devices there are, and of which kind."""
    kind = mesh.devices.flat[0].device_kind
    return kind if mesh.size == 1 else f"{mesh.size} x {kind}"
