"""The loss that a config names, as one function of tokens and item table."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from blossom_jax import sharding
from blossom_jax.errors import check, check_name
from blossom_jax.losses import negatives, sampled, softmax
from blossom_jax.losses.cross_entropy import full_cross_entropy

FULL = "cross_entropy"
SAMPLED = ("sampled_softmax", "gbce", "bce", "bpr")
NEGATIVES = ("uniform", "popularity")
_CHUNK = 1024  # tokens


class Negatives(NamedTuple):
    """What was drawn for a step; of one draw for all tokens G = 1, else G is their number.

    Attributes:
      items: int32[G, K].
      log_q: f32[G, K], logarithm of the probability with which one draw gives each.
    """

    items: jax.Array
    log_q: jax.Array


class Loss(NamedTuple):
    """A loss in its two parts; see `make_loss` for the arguments.

    Attributes:
      draw: `(key, num_tokens, cumulative_counts=None) -> Negatives`, or None where none are needed.
      total: `(hidden, table, targets, negatives) -> (sum, count)`.
    """

    draw: Callable[..., Negatives | None]
    total: Callable[..., tuple[jax.Array, jax.Array]]

    def __call__(self, hidden, table, targets, key, cumulative_counts=None):
        """Draws, and returns the sum and the count."""
        negatives = self.draw(key, len(targets), cumulative_counts)
        return self.total(hidden, table, targets, negatives)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
      loss: "cross_entropy" over the whole catalogue; or by sampled negatives "sampled_softmax",
        "gbce", "bce" or "bpr", see `sampled`.
      loss_implementation: Of "cross_entropy" alone: "xla", "triton", or "" for kernels where they
        run, see `full_cross_entropy`.
      loss_chunk: Tokens whose logits exist at once, at most; kernels keep none. 0 = 1,024; on an
        accelerator, over the whole catalogue, as many as `full_cross_entropy` allows. Of seeds that
        train together each has as many.
      label_smoothing: See `full_cross_entropy`; of "cross_entropy" alone.
      num_negatives: K, samples of a token.
      negatives: "uniform", all items alike, or "popularity", as often as they occur in training.
      shared_negatives: Whether one draw serves all tokens of a step, or each token has its own.
      gbce_t: See `sampled.gbce_beta`; of "gbce" alone.

    Raises:
      UserError: A value out of its range, or one that the loss would not heed.
    """

    loss: str = FULL
    loss_implementation: str = ""
    loss_chunk: int = 0
    label_smoothing: float = 0.0
    num_negatives: int = 256
    negatives: str = "uniform"
    shared_negatives: bool = True
    gbce_t: float = 0.75

    def __post_init__(self):
        check_name("train.loss", self.loss, (FULL, *SAMPLED))
        implementation = self.loss_implementation
        check_name("train.loss_implementation", implementation, ("", *softmax.NAMES))
        check_name("train.negatives", self.negatives, NEGATIVES)
        for name, least in (("loss_chunk", 0), ("num_negatives", 1)):
            value = getattr(self, name)
            check(value >= least, f"train.{name} must be at least {least}, got {value}")
        smoothing, t = self.label_smoothing, self.gbce_t
        check(0 <= smoothing < 1, f"train.label_smoothing must lie in [0, 1), got {smoothing}")
        check(0 <= t <= 1, f"train.gbce_t must lie in [0, 1], got {t}")
        check(
            self.loss == FULL or smoothing == 0,
            f"train.label_smoothing={smoothing} is of train.loss={FULL} alone: set it to 0, or "
            f"choose that loss instead of {self.loss}",
        )
        check(
            self.loss == FULL or not implementation,
            f"train.loss_implementation={implementation} is of train.loss={FULL} alone: set it to "
            f"'', or choose that loss instead of {self.loss}",
        )

    @property
    def by_popularity(self) -> bool:
        """Whether the loss must be told how often each item occurs."""
        return self.loss in SAMPLED and self.negatives == "popularity"


def make_loss(config: LossConfig, *, num_items: int, mesh: jax.sharding.Mesh | None = None) -> Loss:
    """Returns `(hidden, table, targets, key, cumulative_counts=None) -> (sum, count)`.

    It takes the output of the model [T, M]; the item table [R, M], item k in row k; int32[T], the
    item that follows each token, 0 where there is none; a key that decides which negatives are
    drawn, where any are; and, where `config.by_popularity`, what `negatives.cumulative_counts`
    made. It returns the sum over the tokens that have a target, and their number.

    Args:
      config: Which loss.
      num_items: V, size of the catalogue; rows of the table beyond it are no items.
      mesh: As in `full_cross_entropy`.

    Raises:
      UserError: gBCE with more samples than there are other items.
    """
    if config.loss == FULL:
        full = functools.partial(_full, config=config, num_items=num_items, mesh=mesh)
        return Loss(draw_none, full)
    check(
        config.loss != "gbce" or config.num_negatives < num_items,
        f"train.num_negatives={config.num_negatives} must be below the {num_items} items of the "
        "catalogue for train.loss=gbce: lower it, or choose train.loss=cross_entropy, which "
        "compares with all of them",
    )
    return Loss(
        functools.partial(_draw, config=config, num_items=num_items),
        functools.partial(_sampled, config=config, num_items=num_items, mesh=mesh),
    )


def draw_none(key, num_tokens, cumulative_counts=None) -> None:
    """Draws nothing, as `Loss.draw` of a loss over the whole catalogue."""
    del key, num_tokens, cumulative_counts


def _full(hidden, table, targets, drawn, *, config, num_items, mesh):
    del drawn
    return full_cross_entropy(
        hidden,
        table,
        targets,
        num_items=num_items,
        chunk=config.loss_chunk or _chunk(mesh, len(targets)),
        label_smoothing=config.label_smoothing,
        mesh=mesh,
        implementation=config.loss_implementation or None,
    )


def _chunk(mesh: jax.sharding.Mesh | None, num_tokens: int) -> int:
    return _CHUNK if sharding.platform_of(mesh) == "cpu" else num_tokens


def _draw(key, num_tokens, cumulative_counts=None, *, config, num_items):
    shape = (1 if config.shared_negatives else num_tokens, config.num_negatives)
    items = negatives.draw(key, shape, num_items, cumulative_counts)
    return Negatives(items, negatives.log_probability(items, num_items, cumulative_counts))


def _sampled(hidden, table, targets, drawn, *, config, num_items, mesh):
    return sampled.sampled_loss(
        hidden,
        table,
        targets,
        *drawn,
        formula=_formula(config, num_items),
        chunk=config.loss_chunk or _CHUNK,
        mesh=mesh,
    )


def _formula(config: LossConfig, num_items: int) -> sampled.Formula:
    if config.loss == "sampled_softmax":
        return sampled.sampled_softmax
    if config.loss == "bpr":
        return sampled.bayesian_personalized_ranking
    if config.loss == "bce":
        return sampled.binary_cross_entropy
    beta = sampled.gbce_beta(config.num_negatives, num_items, config.gbce_t)
    return functools.partial(sampled.binary_cross_entropy, beta=beta)
