"""One training step: the loss of a packed batch, its gradients, and the update, as one program."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from blossom_jax import lazy_rows, sharding
from blossom_jax.baselines.masking import hide_events
from blossom_jax.lazy_rows import Examples, Update
from blossom_jax.losses import Loss

# Folded into the key of a step for its negatives; dropout folds in small numbers.
_NEGATIVES = 2**32 - 1

State = dict  # {"params": nnx.State, "opt_state": optax.OptState, "step": int32[]}


def abstract_params(
    make_model: Callable[[], nnx.Module], mesh: jax.sharding.Mesh
) -> tuple[nnx.GraphDef, nnx.State]:
    """Describes a model without allocating any of it.

    Args:
      make_model: Builds the model with its initial parameters.
      mesh: Devices that the parameters will be on.

    Returns:
      The model without its parameters, and those as ShapeDtypeStructs with shardings.
    """
    graphdef, params = nnx.split(nnx.eval_shape(make_model), nnx.Param)
    return graphdef, _with_shardings(params, mesh)


def abstract_state(
    make_model: Callable[[], nnx.Module],
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
) -> State:
    """Describes the state of a run, likewise.

    Args:
      make_model: As in `abstract_params`.
      optimizer: From `make_optimizer`.
      mesh: Devices that the state will be on.
    """
    return _with_shardings(jax.eval_shape(lambda: _init(make_model, optimizer)), mesh)


def _with_shardings(tree, mesh):
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        sharding.param_shardings(mesh, tree),
    )


def init_state(
    make_model: Callable[[], nnx.Module], optimizer: optax.GradientTransformation, like: State
) -> State:
    """Draws the initial parameters, each shard on its own device.

    Args:
      make_model: As in `abstract_params`.
      optimizer: From `make_optimizer`.
      like: From `abstract_state`.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(lambda: _init(make_model, optimizer), out_shardings=where)()


def _init(make_model, optimizer):
    params = nnx.state(make_model(), nnx.Param)
    opt_state = optimizer.init(params)
    return {"params": params, "opt_state": opt_state, "step": jnp.zeros((), jnp.int32)}


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    like: State,
    loss: Loss,
    *,
    mask_probability: float = 0.0,
    packed: bool = True,
    lazy_items: bool = False,
) -> jax.stages.Wrapped:
    """Returns the jitted step `(state, batch, seed, cumulative_counts=None) -> (state, metrics)`.

    The state is donated. The batch holds int32 [B, L] `item_ids`, `targets` (0 = none) and
    `positions`; the seed and the step number together give the dropout and the negatives, which
    take `cumulative_counts` where they are drawn by popularity (see `losses.make_loss`). The loss
    is the mean over all targets of the batch, on whatever device they are.

    Metrics are f32 scalars: `loss_sum` over targets, `count` of targets, and `grad_norm` before
    clipping.

    Args:
      graphdef: The model without its parameters.
      optimizer: What `optimizer.init` made the state for.
      mesh: Devices over which the batch, and the item table, are split.
      like: The state as ShapeDtypeStructs with the shardings that it keeps.
      loss: From `losses.make_loss`.
      mask_probability: Of each event to be hidden, for a model with `objective="masked"`; its
        targets are what is hidden, and the batch's are not read.
      packed: Whether a row may hold several histories, see `BlossomRec`.
      lazy_items: Whether rows of the item table that a step does not read stay as they are, and
        their moments too, see `lazy_rows`.
    """
    masked = nnx.merge(graphdef, like["params"]).config.objective == "masked"
    draw_examples = functools.partial(
        _draw_examples, loss=loss, mask_probability=mask_probability if masked else None
    )
    mean_loss = functools.partial(
        _mean_loss, graphdef=graphdef, mesh=mesh, loss=loss, packed=packed
    )
    update: Update = functools.partial(_update, mean_loss=mean_loss, optimizer=optimizer)
    if lazy_items:
        update = lazy_rows.on_touched_rows(update)

    def train_step(state, batch, seed, cumulative_counts=None):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        return update(state, *draw_examples(batch, key, cumulative_counts))

    keep = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(keep, sharding.replicated(mesh)))


def _draw_examples(
    batch, key, cumulative_counts, *, loss: Loss, mask_probability: float | None
) -> tuple[Examples, jax.Array]:
    """Hides events, unless none are to be, and draws negatives; returns the key for dropout too."""
    item_ids, positions, targets = (batch[name] for name in ("item_ids", "positions", "targets"))
    if mask_probability is not None:
        key, mask_key = jax.random.split(key)
        item_ids, targets = hide_events(item_ids, positions, mask_key, probability=mask_probability)
    negatives = loss.draw(jax.random.fold_in(key, _NEGATIVES), targets.size, cumulative_counts)
    return Examples(item_ids, positions, targets.reshape(-1), negatives), key


def _mean_loss(params, examples: Examples, key, *, graphdef, mesh, loss: Loss, packed: bool):
    """Returns the mean over all targets, and (sum over targets, count of targets)."""
    model = nnx.merge(graphdef, params)
    with sharding.traced_on(mesh):
        hidden = model(
            examples.item_ids, examples.positions, dropout_key=key, packed=packed
        )  # [B, L, M]
    total, count = loss.total(
        hidden.reshape(-1, hidden.shape[-1]),
        model.item_embedding.embedding[...],
        examples.targets,
        examples.negatives,
    )
    return total / jnp.maximum(count, 1), (total, count)


def _update(state: State, examples: Examples, key, *, mean_loss, optimizer) -> tuple[State, dict]:
    """Returns the state after the step, and its metrics."""
    (_, (total, count)), grads = jax.value_and_grad(mean_loss, has_aux=True)(
        state["params"], examples, key
    )
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    state = {
        "params": optax.apply_updates(state["params"], updates),
        "opt_state": opt_state,
        "step": state["step"] + 1,
    }
    metrics = {"loss_sum": total, "count": count, "grad_norm": optax.tree.norm(grads)}
    return state, jax.tree.map(lambda x: x.astype(jnp.float32), metrics)
