"""Times the whole training step, as the catalogue grows, and as the histories do.

`plain` takes the cross-entropy from all logits at once, the others the loss that they are named
after, with `+xla` by XLA everywhere. `+remat` computes each block anew in the backward pass;
`+lazy` updates only those rows of the item table that the step reads. Every row of a batch is one
history of random items. The model has the defaults of configs/common.py but for its hidden size
and dtype.
"""

import argparse

import jax
from flax import nnx

from blossom_jax import memory
from blossom_jax.losses.objective import FULL, SAMPLED
from blossom_jax.model import BlossomRec, ModelConfig
from experiments.benchmark import growth, measure, training
from experiments.benchmark.growth import PLAIN, Contender, Program, Sizes
from experiments.benchmark.loss import LOSSES, loss_of

REMAT = "+remat"
LAZY = "+lazy"
STEPS = (*LOSSES, f"{FULL}{REMAT}", *(f"{loss}{LAZY}" for loss in SAMPLED))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    growth.add_arguments(parser, lengths=(64, 256, 1024))
    parser.add_argument(
        "--steps",
        type=measure.names(STEPS),
        default=(PLAIN, FULL, f"{FULL}{REMAT}", "sampled_softmax"),
        help=f"of {', '.join(STEPS)}",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures everything, then prints a table and draws a plot."""
    chosen = {name: contender(name) for name in arguments.steps}
    growth.run("step", chosen, arguments, "Training step")


def contender(name: str) -> Contender:
    """Returns what prepares a training step, by its name among `STEPS`."""
    loss = name.removesuffix(REMAT).removesuffix(LAZY)

    def prepare(sizes: Sizes) -> Program:
        state = 2 * 3 * 4 * sizes.items * sizes.hidden_size  # parameters and moments, made and used
        memory.check_fits("the state", state, jax.local_devices(), lower="--items or --hidden-size")
        config = ModelConfig(
            hidden_size=sizes.hidden_size,
            inner_size=4 * sizes.hidden_size,
            max_length=sizes.length,
            dtype=sizes.dtype,
            remat="block" if name.endswith(REMAT) else "none",
        )
        make = training.make_step(
            lambda: BlossomRec(config, sizes.items, rngs=nnx.Rngs(0)),
            training.default_optimizer(),
            loss_of(loss, sizes),
            packed=False,
            lazy_items=name.endswith(LAZY),
        )
        step = make(training.random_batch(sizes.length, sizes.tokens, sizes.items))
        return Program(step.call, step.program)

    return prepare
