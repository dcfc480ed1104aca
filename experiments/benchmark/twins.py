"""Times Blossom against its dense twin by length: a training step, and a recommendation.

Every history has the same length and random items, so that a length costs what it says. A step
trains on `--tokens` of them, one history a row; a recommendation scores the whole catalogue after
the last event of as many. The model has the defaults of configs/common.py but for the sizes given.
"""

import argparse
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from blossom_jax import evaluate, sharding
from blossom_jax.errors import UserError
from blossom_jax.model import BlossomRec
from experiments import _cli
from experiments.benchmark import measure, sizes, training

# (attention, implementation), as in `ModelConfig`; "" is the best for the device at hand.
MODELS = {
    "blossom": ("blossom", ""),
    "blossom+xla": ("blossom", "xla"),
    "dense": ("dense", ""),
    "dense+xla": ("dense", "xla"),
    "dense+cudnn": ("dense", "cudnn"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    measure.add_arguments(parser)
    add("--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here")
    add(
        "--lengths",
        type=measure.positives,
        default=(64, 256, 1024),
        help="events of a history; 64,256,1024 by default",
    )
    add("--tokens", type=measure.positive, default=2**13, help="of a batch; 8,192 by default")
    add("--items", type=measure.positive, default=10_000, help="catalogue; 10,000 by default")
    sizes.add_heads(parser, dtype="float32")
    add(
        "--models",
        type=measure.names(MODELS),
        default=("blossom", "dense"),
        help=f"of {', '.join(MODELS)}",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures everything, then prints a table for each of the two."""
    report = measure.Report("twins", arguments.json, arguments.commit)
    chosen = {name: MODELS[name] for name in arguments.models}
    for work in [_workload(arguments, length) for length in arguments.lengths]:
        for measured, make in MEASURED.items():
            training.compare(chosen, work, arguments.rounds, report, make=make, measured=measured)
    for measured in MEASURED:
        print(f"\n{measured}", end="")
        training.print_table([r for r in report.records if r["measured"] == measured])


def _workload(arguments: argparse.Namespace, length: int) -> training.Workload:
    rows = arguments.tokens // length
    if not rows:
        raise UserError(f"--tokens={arguments.tokens} hold no history of {length=}")
    return training.Workload(
        length=length,
        tokens=rows * length,
        num_items=arguments.items,
        heads=arguments.heads,
        kv_heads=arguments.kv_heads,
        head_size=arguments.head_size,
        dtype=arguments.dtype,
    )


def recommendation(work: training.Workload, attention: str, implementation: str) -> training.Step:
    """Prepares the scores of the whole catalogue after each history of a batch.

    Args:
      work: Whose histories.
      attention: As in `ModelConfig`.
      implementation: Likewise.
    """
    model = BlossomRec(work.model(attention, implementation), work.num_items, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    mesh = sharding.make_mesh(1, devices=jax.local_devices()[:1])
    batch = jax.device_put(_batch(work), sharding.batch_sharding(mesh))
    score = evaluate.last_scores(graphdef)

    def score_all(params, batch):
        with sharding.traced_on(mesh):
            return score(params, batch)

    program = jax.jit(score_all).lower(params, batch).compile()
    return training.Step(lambda: {"scores": program(params, batch)}, program)


def _batch(work: training.Workload) -> dict[str, np.ndarray]:
    """Returns what `evaluate.encode_last` takes: a history in each row, asked at its end."""
    rows = work.batch()
    last = np.arange(work.length - 1, work.tokens, work.length, dtype=np.int32)
    return {"item_ids": rows["item_ids"], "positions": rows["positions"], "last": last}


MEASURED: dict[str, Callable[..., training.Step]] = {
    "training step": training.prepare,
    "recommendation": recommendation,
}
