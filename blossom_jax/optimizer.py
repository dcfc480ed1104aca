"""The optimizer: AdamW with warm-up, clipping and gradient accumulation, from plain values."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from blossom_jax.errors import UserError, check

_COOLDOWN = 0.2  # share of a "wsd" run in which the learning rate falls


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int,
    schedule: str,
    total_steps: int,
    weight_decay: float,
    b1: float,
    b2: float,
    clip_norm: float,
    accumulate_steps: int,
    frozen: Callable[[tuple], bool] = lambda path: False,
) -> optax.GradientTransformation:
    """Returns AdamW (https://arxiv.org/abs/1711.05101) as this project trains with it.

    Args:
      learning_rate: Peak learning rate.
      warmup_steps: Optimizer updates in which the learning rate rises linearly from 0.
      schedule: What follows the warm-up: "constant"; "cosine" down to 0 at `total_steps`; or
        "wsd", constant until the last fifth of the run, then a line down to 0
        (https://arxiv.org/abs/2404.06395).
      total_steps: Batches in the whole run; only what falls to 0 depends on it.
      weight_decay: Decoupled decay, of matrices and embeddings: biases and the scales of layer
        norms, all of one dimension, are left out.
      b1: Decay of the mean of gradients.
      b2: Decay of the mean of squared gradients.
      clip_norm: Largest norm of all gradients together; 0 leaves them as they are.
      accumulate_steps: Batches whose gradients are averaged into one update.
      frozen: Tells by its path in the tree whether a parameter gets no gradient and must stay as
        it is: no decay either. Adam leaves such a parameter alone, since its moments stay 0.

    Raises:
      UserError: A value out of its range.
    """
    check(weight_decay >= 0, f"train.weight_decay must not be negative, got {weight_decay}")
    check(
        0 <= b1 < 1 and 0 <= b2 < 1,
        f"train.b1 and train.b2 must lie in [0, 1), got {b1} and {b2}",
    )
    check(clip_norm >= 0, f"train.clip_norm must not be negative, got {clip_norm}")
    check(
        accumulate_steps >= 1,
        f"train.accumulate_steps must be at least 1, got {accumulate_steps}",
    )
    rate = learning_rate_schedule(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        schedule=schedule,
        total_updates=total_steps // accumulate_steps,
    )
    decays = functools.partial(_decays, frozen=frozen)
    optimizer = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays)
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    if accumulate_steps > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate_steps).gradient_transformation()
    return optimizer


def _decays(params: Any, *, frozen: Callable[[tuple], bool]) -> Any:
    """Tells of each parameter whether it decays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and not frozen(path), params
    )


def learning_rate_schedule(
    *, learning_rate: float, warmup_steps: int, schedule: str, total_updates: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates made.

    Raises:
      UserError: An unknown schedule, one that would fall before its warm-up has ended, or a
        number that is negative.
    """
    check(
        0 <= learning_rate < math.inf,
        f"train.learning_rate must be finite and not negative, got {learning_rate}",
    )
    check(warmup_steps >= 0, f"train.warmup_steps must not be negative, got {warmup_steps}")
    fall = math.ceil(total_updates * _COOLDOWN)
    hold = total_updates - fall - warmup_steps
    if schedule == "constant":
        rest = optax.constant_schedule(learning_rate)
    elif schedule == "cosine":
        rest = optax.cosine_decay_schedule(learning_rate, max(1, total_updates - warmup_steps))
    elif schedule == "wsd":
        rest = optax.linear_schedule(learning_rate, 0.0, fall, transition_begin=hold)
    else:
        raise UserError(f"train.schedule must be 'constant', 'cosine' or 'wsd', got {schedule!r}")
    check(
        schedule == "constant" or hold >= 0,
        f"train.schedule={schedule!r} of {total_updates} updates leaves no room for "
        f"train.warmup_steps={warmup_steps}: train longer, or lower it",
    )
    if not warmup_steps:
        return rest
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, rest], [warmup_steps])
