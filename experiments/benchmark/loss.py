"""Times losses with their gradients, as the catalogue grows, and as the tokens of a batch do.

`plain` is the cross-entropy by Optax from all logits at once, `cross_entropy` the same number
without them: by kernels where they run, else, and with `+xla` everywhere, from a chunk of them at a
time. The others compare each target with samples; drawing them is included.
Inputs are random, every token has a target, and the output of the model has variance 1.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from blossom_jax.losses import Loss, LossConfig, make_loss
from blossom_jax.losses.objective import FULL, SAMPLED, draw_none
from experiments.benchmark import growth, measure
from experiments.benchmark.growth import PLAIN, Contender, Program, Sizes

XLA = "+xla"
LOSSES = (PLAIN, FULL, f"{FULL}{XLA}", *SAMPLED)
_ROWS_MULTIPLE = 128  # as in the model's table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    growth.add_arguments(parser, lengths=(64, 256, 1024))
    parser.add_argument(
        "--losses",
        type=measure.names(LOSSES),
        default=(PLAIN, FULL, "sampled_softmax", "bpr"),
        help=f"of {', '.join(LOSSES)}",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures everything, then prints a table and draws a plot."""
    chosen = {name: contender(name) for name in arguments.losses}
    growth.run("loss", chosen, arguments, "Loss and its gradients")


def plain_cross_entropy(
    hidden: Float[Array, "T M"],
    table: Float[Array, "R M"],
    targets: Int[Array, "T"],
    negatives: None = None,
    *,
    num_items: int,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sums -log softmax over the catalogue by the textbook, all logits at once.

    Args:
      hidden: Output of the model.
      table: Item embeddings, item k in row k.
      targets: The item that follows each token, 0 where there is none.
      negatives: Not used.
      num_items: V, size of the catalogue.

    Returns:
      The sum, and the number of tokens that have a target.
    """
    del negatives
    items = table[1 : num_items + 1].astype(hidden.dtype)
    logits = jnp.einsum("tm,vm->tv", hidden, items, preferred_element_type=jnp.float32)
    labels = jnp.maximum(targets - 1, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses, where=targets > 0), jnp.sum(targets > 0)


def contender(name: str) -> Contender:
    """Returns what prepares a loss with its gradients, by the loss's name."""

    def prepare(sizes: Sizes) -> Program:
        loss = loss_of(name, sizes)
        gradient = jax.value_and_grad(lambda *arrays: loss(*arrays)[0], argnums=(0, 1))
        arrays = _arrays(sizes)
        compiled = jax.jit(gradient).lower(*arrays).compile()
        return Program(functools.partial(compiled, *arrays), compiled)

    return prepare


def loss_of(name: str, sizes: Sizes) -> Loss:
    """Returns a loss by its name, as `blossom_jax.losses.make_loss` describes it."""
    if name == PLAIN:
        plain = functools.partial(plain_cross_entropy, num_items=sizes.items)
        return Loss(draw_none, plain)
    config = LossConfig(
        loss=name.removesuffix(XLA),
        loss_implementation="xla" if name.endswith(XLA) else "",
        num_negatives=sizes.num_negatives,
    )
    return make_loss(config, num_items=sizes.items)


@functools.lru_cache(maxsize=1)  # the contenders at one size share them
def _arrays(sizes: Sizes):
    rows = -(-(sizes.items + 1) // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (sizes.tokens, sizes.hidden_size), sizes.dtype)
    table = 0.02 * jax.random.normal(keys[1], (rows, sizes.hidden_size))
    targets = jax.random.randint(keys[2], (sizes.tokens,), 1, sizes.items + 1)
    return hidden, table, targets, keys[3]
