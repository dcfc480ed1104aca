"""Losses that compare each target with a few sampled items instead of the whole catalogue."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blossom_jax import sharding
from blossom_jax.losses import chunks
from blossom_jax.losses.chunks import dot, sum_over

Formula = Callable[..., jax.Array]


def sampled_softmax(
    target: Float[Array, "C"],
    sampled: Float[Array, "C K"],
    is_negative: Bool[Array, "C K"],
    log_q: Float[Array, "#C K"],
) -> Float[Array, "C"]:
    """Estimates -log softmax over the catalogue from samples, with logQ correction.

    The sum over all other items becomes the mean over samples of exp(score) / q, which is what it
    is on average (https://arxiv.org/abs/1412.2007). The target is there in any case and not
    because it was drawn, so that its score is not corrected (https://arxiv.org/abs/2507.09331).

    Args:
      target: Score of each token's target.
      sampled: Scores of its K sampled items.
      is_negative: Which of them are not the target by chance.
      log_q: Logarithm of the probability with which one draw gives each.
    """
    others = sampled - log_q - jnp.log(jnp.float32(sampled.shape[1]))
    others = jnp.where(is_negative, others, -jnp.inf)
    return jax.nn.logsumexp(jnp.column_stack([target, others]), axis=1) - target


def binary_cross_entropy(
    target: Float[Array, "C"],
    sampled: Float[Array, "C K"],
    is_negative: Bool[Array, "C K"],
    log_q: Float[Array, "#C K"],
    *,
    beta: float = 1.0,
) -> Float[Array, "C"]:
    """Tells targets from samples one by one, as SASRec does (https://arxiv.org/abs/1808.09781).

    With a `beta` below 1 it is gBCE of gSASRec (https://arxiv.org/abs/2308.07192), the mean of
    -beta log sigmoid(target) and of -log(1 - sigmoid(sampled)) over the K samples.

    Args:
      target: As in `sampled_softmax`, like the next two.
      sampled: Likewise.
      is_negative: Likewise.
      log_q: Not used.
      beta: From `gbce_beta`; 1 is plain BCE.
    """
    del log_q
    negatives = jnp.sum(jax.nn.softplus(sampled), axis=1, where=is_negative)
    return (beta * jax.nn.softplus(-target) + negatives) / (1 + sampled.shape[1])


def gbce_beta(num_negatives: int, num_items: int, t: float) -> float:
    """Returns beta of gBCE: alpha (t (1 - 1 / alpha) + 1 / alpha), alpha = K / (V - 1).

    Args:
      num_negatives: K, of one token.
      num_items: V.
      t: Calibration: 0 is plain BCE, and 1 has the scores predict as if no item had been left out.
    """
    alpha = num_negatives / (num_items - 1)
    return 1 - t * (1 - alpha)


def bayesian_personalized_ranking(
    target: Float[Array, "C"],
    sampled: Float[Array, "C K"],
    is_negative: Bool[Array, "C K"],
    log_q: Float[Array, "#C K"],
) -> Float[Array, "C"]:
    """Takes the mean over samples of -log sigmoid(target - sampled), which is BPR.

    The source is https://arxiv.org/abs/1205.2618; what weight decay does there, the optimizer does
    here.

    Args:
      target: As in `sampled_softmax`, like the next two.
      sampled: Likewise.
      is_negative: Likewise.
      log_q: Not used.
    """
    del log_q
    losses = jax.nn.softplus(sampled - target[:, None])
    return jnp.sum(losses, axis=1, where=is_negative) / sampled.shape[1]


def sampled_loss(
    hidden: Float[Array, "T M"],
    table: Float[Array, "R M"],
    targets: Int[Array, "T"],
    negatives: Int[Array, "G K"],
    log_q: Float[Array, "G K"],
    *,
    formula: Formula,
    chunk: int = 512,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sums a loss by samples over the tokens that have a target.

    Args:
      hidden: Output of the model, f32 or bf16; scores are products in this type, summed in f32.
      table: Item embeddings, item k in row k.
      targets: The item that follows each token, 0 where there is none.
      negatives: K items for each token, G = T; or, G = 1, the same K for all.
      log_q: Logarithm of the probability with which one draw gives each.
      formula: `(target, sampled, is_negative, log_q) -> f32[C]`, as `sampled_softmax`.
      chunk: Tokens whose scores, and the rows of whose own negatives, exist at once on a device.
      mesh: As in `full_cross_entropy`; negatives of tokens are split like `hidden`, those for all
        are everywhere.

    Returns:
      The sum, and the number of tokens in it.

    Raises:
      ValueError: If G is neither 1 nor T, or `chunk` is not positive.
    """
    if negatives.shape[0] not in (1, targets.shape[0]):
        raise ValueError(f"negatives must be of all tokens or of each, got {negatives.shape=}")
    if chunk < 1:
        raise ValueError(f"chunk must be positive, got {chunk=}")
    part = functools.partial(_part, formula=formula, chunk=chunk, mesh=mesh)
    split = sharding.EVERYWHERE if negatives.shape[0] == 1 else sharding.ROWS
    run = chunks.sum_with_gradients(part, mesh, (sharding.ROWS, split, split))
    return run(hidden, table, targets, negatives, log_q), jnp.sum(targets > 0)


def _part(hidden, table, targets, negatives, log_q, *, formula, chunk, mesh):
    """Forms the loss of one device's tokens, and its gradients for that device's rows."""
    loss_and_gradients = jax.value_and_grad(_chunk_loss, argnums=(0, 1, 2))

    def add_chunk(sums, tokens):
        loss, dtable = sums
        target, has_target = _at(targets, tokens, 0), tokens < len(targets)
        mine = (lambda x: x) if len(negatives) == 1 else (lambda x: _at(x, tokens, 0))
        sampled = mine(negatives)
        rows = _lookup(table, target, mesh), _lookup(table, sampled, mesh)
        others = (sampled != target[:, None]) & has_target[:, None], mine(log_q), has_target
        more, (dh, *drows) = loss_and_gradients(_at(hidden, tokens, 0), *rows, *others, formula)
        for items, drow in zip((target, sampled), drows, strict=True):
            _, own = chunks.own_rows(items, table.shape[0], mesh)
            dtable = dtable.at[own].add(drow, mode="drop")
        return (loss + more, dtable), dh

    zeros = jnp.float32(0), jnp.zeros(table.shape)
    (loss, dtable), dhidden = chunks.over_chunks(add_chunk, zeros, targets, chunk, mesh)
    dtable = sum_over(sharding.DATA, dtable, mesh).astype(table.dtype)
    return sum_over(sharding.DATA, loss, mesh), (dhidden, dtable)


def _chunk_loss(hidden, target_rows, sampled_rows, is_negative, log_q, has_target, formula):
    dtype = hidden.dtype
    target = dot("cm,cm->c", hidden, target_rows.astype(dtype))
    # The same samples for all tokens make one product of matrices; their axis of length 1 is c's.
    if len(sampled_rows) == 1:
        sampled = dot("cm,km->ck", hidden, sampled_rows[0].astype(dtype))
    else:
        sampled = dot("cm,ckm->ck", hidden, sampled_rows.astype(dtype))
    return jnp.sum(formula(target, sampled, is_negative, log_q), where=has_target)


def _at(x, tokens, fill):
    return x.at[tokens].get(mode="fill", fill_value=fill)


def _lookup(table, items, mesh):
    """Returns the embeddings of items, whichever device has them; 0 for none."""
    _, own = chunks.own_rows(items, table.shape[0], mesh)
    return sum_over(sharding.MODEL, _at(table, own, 0), mesh)
