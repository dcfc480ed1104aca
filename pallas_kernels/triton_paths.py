"""Either sparse path, or both under the gate, by Triton kernels, with their gradients.

One program flow serves three ops. Forward: `invert` lists the queries that selected each block
(selected_attention/inverted_lists.py); `blocks_forward` attends the blocks one by one
(selected_attention/triton_forward.py); `near_forward` attends the keys near each query, for both
paths at once, and merges what the blocks gave (power_attention/triton_forward.py). Backward:
`blocks_backward`, then `near_queries` and `near_keys`, which add what the blocks gave to the
gradients of their own (triton_backward*.py in the same folders).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import tuned
from pallas_kernels.masked_softmax import at_least_f32
from pallas_kernels.path_totals import PathTotals
from pallas_kernels.power_attention.backward_inputs import BackwardInputs
from pallas_kernels.power_attention.config import NearTiles
from pallas_kernels.power_attention.near import NearSizes
from pallas_kernels.power_attention.triton_backward_keys import near_keys
from pallas_kernels.power_attention.triton_backward_queries import near_queries
from pallas_kernels.power_attention.triton_forward import Parts, near_forward
from pallas_kernels.selected_attention.blocks import BlockSizes
from pallas_kernels.selected_attention.config import BlockTiles
from pallas_kernels.selected_attention.inverted_lists import invert
from pallas_kernels.selected_attention.triton_backward import BlockBackwardInputs, blocks_backward
from pallas_kernels.selected_attention.triton_forward import blocks_forward
from pallas_kernels.triton_limits import row_elements, row_groups
from pallas_kernels.triton_tools import (
    LEAST_TILE,
    Heads,
    pad_head,
    padded_head,
    shape,
    to_matrix,
)


@dataclasses.dataclass(frozen=True)
class Paths:
    """Which paths are attended, and how; static.

    Attributes:
      block_size: S of the long-term path, 0 without it.
      window: W of the short-term path, 0 without it.
      max_history: bound on positions.
      with_factor: whether the selection's probability has a gradient ("straight_through").
      interpret: see `launch`.
    """

    block_size: int = 0
    window: int = 0
    max_history: int = 0
    with_factor: bool = False
    interpret: bool = False

    def near(self, kernel: str, q, k, slots) -> NearSizes:
        """Sizes of a kernel of near keys."""
        choose = NearTiles.by_keys if kernel == "near_keys" else NearTiles.by_queries
        return NearSizes(
            heads=heads(q, k),
            block_size=self.block_size,
            window=self.window,
            max_history=self.max_history,
            num_selected=0 if slots is None else slots.shape[-1],
            scale=q.shape[-1] ** -0.5,
            tiles=tuned.choose(
                kernel, shape(q, k, self.block_size), choose(padded_head(q.shape[-1]), q.dtype)
            ),
            least_tokens=LEAST_TILE if kernel == "near_keys" else 0,
        )

    def blocks(self, kernel: str, q, k, slots) -> BlockSizes:
        """Sizes of a kernel of selected blocks."""
        choose = BlockTiles.forward if kernel == "blocks_forward" else BlockTiles.backward
        tiles = choose(padded_head(self.block_size), padded_head(q.shape[-1]), q.dtype)
        tiles = tuned.choose(kernel, shape(q, k, self.block_size), tiles)
        scale = q.shape[-1] ** -0.5
        return BlockSizes(heads(q, k), self.block_size, slots.shape[-1], scale, tiles)


def heads(q, k) -> Heads:
    """Reads the sizes off the arrays."""
    return Heads(q.shape[1], k.shape[2], q.shape[2] // k.shape[2])


def attend(
    q: Float[Array, "B L H D"],
    k: Float[Array, "B L G D"],
    v: Float[Array, "B L G D"],
    slots: Int[Array, "B L G N"] | None,
    probability: Float[Array, "B L G N"] | None,
    gate: Float[Array, "B L H 2"] | None,
    positions: Int[Array, "B L"],
    paths: Paths,
) -> Float[Array, "B L H D"]:
    """Attends along the paths; a group of rows at a time where all have too many elements.

    Args:
      q: queries; the logits are scaled by D**-0.5 here.
      k: keys.
      v: values.
      slots: selected blocks; None without the long-term path.
      probability: receives the straight-through gradient; None where there is none.
      gate: weights of the paths; None for one path alone.
      positions: int32, position of each token inside its own sequence, -1 at padding.
      paths: which paths.
    """
    arrays = q, k, v, slots, probability, gate, positions
    num_selected = 0 if slots is None else slots.shape[-1]
    blocks = {"block_size": paths.block_size, "num_selected": num_selected}
    groups = row_groups(q, row_elements(q, k.shape[2], **blocks))
    if groups == 1:
        return _attend(*arrays, paths)
    split = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), arrays)
    return jax.lax.map(lambda rows: _attend(*rows, paths), split).reshape(q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _attend(q, k, v, slots, probability, gate, positions, paths):
    return _save(q, k, v, slots, probability, gate, positions, paths)[0]


def _save(q, k, v, slots, probability, gate, positions, paths):
    parts = lists = None
    wide_q, wide_k, wide_v = (pad_head(x) for x in (q, k, v))
    if slots is not None:
        lists = invert(slots, positions, paths.block_size, paths.max_history, paths.interpret)
        sizes = paths.blocks("blocks_forward", q, k, slots)
        matrices = to_matrix(wide_q), to_matrix(wide_k), to_matrix(wide_v)
        found = blocks_forward(*matrices, lists, sizes, interpret=paths.interpret)
        parts = Parts(slots.reshape(-1), *found)
    sizes = paths.near("near_forward", q, k, slots)
    outputs = near_forward(wide_q, wide_k, wide_v, positions, gate, parts, sizes, paths.interpret)
    out = outputs.pop("out")
    if gate is None and "long" in sizes.paths:
        outputs["long"] = out
    out = out[..., : q.shape[-1]]
    return out, (q, k, v, slots, probability, gate, positions, outputs, lists)


def _backward(paths, saved, d_out):
    q, k, v, slots, probability, gate, positions, outputs, lists = saved
    batch, d = q.shape[0], q.shape[-1]
    wide_q, wide_k, wide_v, wide_d_out = (to_matrix(pad_head(x)) for x in (q, k, v, d_out))
    sizes = paths.near("near_queries", q, k, slots)
    names = sizes.paths
    totals = {name: PathTotals(outputs[f"{name}_log_total"].reshape(-1), None) for name in names}
    if "long" in names:
        delta = (at_least_f32(d_out) * at_least_f32(outputs["long"][..., :d])).sum(-1)
        delta = jnp.where((positions >= 0)[..., None], delta, 0.0)  # whatever d_out is at padding
        totals["long"] = totals["long"]._replace(delta=delta.astype(q.dtype).reshape(-1))
    queries_parts = keys_parts = d_probability = None
    if slots is not None:
        found = blocks_backward(
            BlockBackwardInputs(wide_q, wide_k, wide_v, wide_d_out, totals["long"], lists),
            paths.blocks("blocks_backward", q, k, slots),
            with_factor=paths.with_factor,
            interpret=paths.interpret,
        )
        queries_parts, keys_parts = (slots.reshape(-1), found.q), found.kv
        if paths.with_factor:
            by_pair = found.factor.reshape(*slots.shape, -1).sum(-1)
            d_probability = jnp.where(slots >= 0, by_pair, 0.0).astype(probability.dtype)
    x = BackwardInputs(wide_q, wide_k, wide_v, wide_d_out, positions.reshape(-1), totals, None)
    found = near_queries(x._replace(parts=queries_parts), sizes, batch, paths.interpret)
    d_q = found["q"]
    if "short" in names:
        totals["short"] = totals["short"]._replace(delta=found["delta"])
    sizes = paths.near("near_keys", q, k, slots)
    d_kv = near_keys(x._replace(parts=keys_parts), sizes, batch, paths.interpret)
    d_q, d_k, d_v = (
        g.reshape(*x.shape[:-1], -1)[..., :d] for g, x in zip((d_q, *d_kv), (q, k, v), strict=True)
    )
    d_gate = None
    if gate is not None:
        d_gate = jnp.stack([totals[name].delta for name in names], -1)
        d_gate = d_gate.reshape(gate.shape).astype(gate.dtype)
    return d_q, d_k, d_v, None, d_probability, d_gate, None


_attend.defvjp(_save, _backward)
