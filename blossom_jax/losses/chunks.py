"""What all losses share: chunks of the tokens, the rows of one device, gradients formed at once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from blossom_jax import sharding

_FEW = 8  # turns of a loop
_MULTIPLE = 64  # tokens of a chunk, where that is not more than asked for


def sum_with_gradients(
    loss_and_gradients: Callable[..., tuple[jax.Array, tuple[jax.Array, jax.Array]]],
    mesh: jax.sharding.Mesh | None,
    specs: tuple[jax.sharding.PartitionSpec, ...],
) -> Callable[..., jax.Array]:
    """Makes a differentiable sum over tokens of functions that each device runs on its own part.

    The cotangent of a sum is one number, so its gradients are formed together with it, and the
    backward pass only scales them. Without one, in a jitted program, XLA leaves out what they alone
    need.

    Args:
      loss_and_gradients: `(hidden, table, *others) -> (f32 sum, gradients)`: summed over all
        devices, and the gradients of the first two, each summed over those devices that have
        another part of it.
      mesh: Devices over which `hidden` ("data") and `table` ("model") are split by rows. None =
        everything is on one device.
      specs: How the other arguments are split. They get no gradient.
    """
    forward = loss_and_gradients
    if mesh is not None:
        forward = jax.shard_map(
            loss_and_gradients,
            mesh=mesh,
            in_specs=(sharding.ROWS, sharding.TABLE_ROWS, *specs),
            out_specs=(sharding.EVERYWHERE, (sharding.ROWS, sharding.TABLE_ROWS)),
            check_vma=False,  # it serves differentiation, and nothing differentiates this
        )

    @jax.custom_vjp
    def run(*arrays):
        return forward(*arrays)[0]

    def backward(gradients, cotangent):
        scaled = (gradient * cotangent.astype(gradient.dtype) for gradient in gradients)
        return *scaled, *(None for _ in specs)

    run.defvjp(forward, backward)
    return run


def over_chunks(
    add_chunk: Callable[[Any, jax.Array], tuple[Any, jax.Array]],
    sums: Any,
    targets: jax.Array,
    chunk: int,
    mesh: jax.sharding.Mesh | None,
) -> tuple[Any, jax.Array]:
    """Adds up chunks of the tokens that have a target, all of one size.

    As many as there are targets for; but an accelerator takes all where they are few. It would have
    to ask its host before each turn of a loop whose end it does not know, which is dear unless the
    turns are large, as they are where the catalogue makes them many.

    Args:
      add_chunk: `(sums, tokens) -> (sums, rows)`, where `tokens` holds the places of a chunk's
        tokens, those with a target first, and behind them the number of all tokens; `rows` is what
        is found for each of them, [chunk, M].
      sums: Where to begin.
      targets: int32[T], 0 where there is none.
      chunk: Tokens in a chunk, at most.
      mesh: As in `sum_with_gradients`.

    Returns:
      The sums; and the rows of all tokens, [T, M], 0 where there is no target.
    """
    num_tokens, has_target = targets.shape[0], targets > 0
    turns = -(-num_tokens // chunk)
    chunk = min(chunk, -(-num_tokens // (turns * _MULTIPLE)) * _MULTIPLE)
    (tokens,) = jnp.nonzero(has_target, size=turns * chunk, fill_value=num_tokens)
    if turns == 1:
        sums, rows = add_chunk(sums, tokens)
    else:
        all_taken = turns <= _FEW and sharding.platform_of(mesh) != "cpu"
        taken = turns if all_taken else -(-jnp.sum(has_target) // chunk)
        sums, rows = _over_parts(add_chunk, sums, tokens, chunk, taken)
    place = jnp.cumsum(has_target) - 1  # -1, whatever stands there, before the first target
    place = lax.optimization_barrier(place)  # a GPU would count anew for each number of a row
    return sums, jnp.where(has_target[:, None], rows[place], 0)


def _over_parts(add_chunk, sums, tokens, chunk: int, turns):
    """Takes one chunk of the tokens after another, and lays their rows one behind the other."""

    def step(i, found):
        sums, rows = found
        sums, more = add_chunk(sums, lax.dynamic_slice_in_dim(tokens, i * chunk, chunk))
        return sums, lax.dynamic_update_slice_in_dim(rows, more, i * chunk, axis=0)

    like = jax.eval_shape(add_chunk, sums, tokens[:chunk])[1]
    rows = jnp.zeros((len(tokens), *like.shape[1:]), like.dtype)
    return lax.fori_loop(0, turns, step, (sums, rows))


def own_rows(
    items: jax.Array, num_rows: int, mesh: jax.sharding.Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """Finds items among the rows of the table that this device has.

    Args:
      items: int32, of any shape; 0 = none.
      num_rows: Rows on each device.
      mesh: As in `sum_with_gradients`.

    Returns:
      The item in the device's first row, and the row of each of `items`: `num_rows`, and thus
      outside, where another device has it, or none.
    """
    first = 0 if mesh is None else num_rows * lax.axis_index(sharding.MODEL)
    is_here = (items > 0) & (items >= first)
    return jnp.asarray(first), jnp.where(is_here, items - first, num_rows)


def sum_over(axis: str, x: jax.Array, mesh: jax.sharding.Mesh | None) -> jax.Array:
    """Adds up over the devices along one axis of the mesh."""
    return x if mesh is None else lax.psum(x, axis)


dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
