"""Block selection by Triton kernels: `triton_forward` and `triton_backward` made one op."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import tuned
from pallas_kernels.block_selection.config import SelectionTiles
from pallas_kernels.block_selection.scores import ScoreInputs, SelectionSizes
from pallas_kernels.block_selection.triton_backward import Chosen, selection_keys, selection_queries
from pallas_kernels.block_selection.triton_forward import selection_forward
from pallas_kernels.checks import without_padding
from pallas_kernels.masked_softmax import at_least_f32
from pallas_kernels.positions import blocks
from pallas_kernels.triton_tools import pad_head, padded_head, shape, to_matrix


def block_selection(
    q: Float[Array, "B L H D"],
    summary_keys: Float[Array, "B slots G D"],
    positions: Int[Array, "B L"],
    *,
    block_size: int,
    num_selected: int,
    causal: bool,
    mask_own_block: bool,
    with_probability: bool = True,
    interpret: bool = False,
) -> tuple[Int[Array, "B L G N"], Float[Array, "B L G N"] | None]:
    """See `pallas_kernels.block_selection`; without the probability, there is no gradient."""
    del causal, mask_own_block  # its kernels are causal, where the own block is no candidate
    b, length, h, d = q.shape
    slots, g = summary_keys.shape[1:3]
    row = blocks(positions, block_size=block_size, causal=True)
    sizes = SelectionSizes(
        length=length,
        slots=slots,
        kv_heads=g,
        block_size=block_size,
        num_selected=num_selected,
        tiles=tuned.choose(
            "selection_forward",
            shape(q, summary_keys, block_size),
            SelectionTiles.heuristics(padded_head(d), summary_keys.dtype),
        ),
    )
    candidates = row.first_slot, row.num_candidates
    if with_probability:
        (q,) = without_padding(positions, q)
        mean_query = at_least_f32(q).reshape(b, length, g, h // g, d).sum(3) * (g / h) * d**-0.5
        return _select(mean_query, summary_keys, candidates, sizes, interpret)
    sizes = dataclasses.replace(sizes, members=h // g, scale=d**-0.5)
    largest = abs(summary_keys).max((1, 3)).astype(jnp.float32).reshape(-1)
    x = _inputs(q, summary_keys, candidates)._replace(largest=largest)
    found = selection_forward(x, sizes, b, with_probability=False, interpret=interpret)
    return found["slots"].reshape(b, length, g, num_selected), None


def _inputs(queries, summary_keys, candidates) -> ScoreInputs:
    first, number = candidates
    keys = to_matrix(pad_head(summary_keys))
    return ScoreInputs(to_matrix(pad_head(queries)), keys, first.reshape(-1), number.reshape(-1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _select(mean_query, summary_keys, candidates, sizes, interpret):
    return _save(mean_query, summary_keys, candidates, sizes, interpret)[0]


def _save(mean_query, summary_keys, candidates, sizes, interpret):
    batch, length, g, _ = mean_query.shape
    x = _inputs(mean_query, summary_keys, candidates)
    found = selection_forward(x, sizes, batch, with_probability=True, interpret=interpret)
    chosen = (batch, length, g, sizes.num_selected)
    out = found["slots"].reshape(chosen), found["probability"].reshape(chosen)
    return out, (
        mean_query,
        summary_keys,
        candidates,
        out,
        found["highest"],
        found["inverse_total"],
    )


def _backward(sizes, interpret, saved, d_out):
    mean_query, summary_keys, candidates, (slots, probability), *softmax = saved
    batch = mean_query.shape[0]
    x = _inputs(mean_query, summary_keys, candidates)
    delta = (d_out[1] * probability).sum(-1)
    chosen = Chosen(slots.reshape(-1), d_out[1].reshape(-1), delta.reshape(-1), *softmax)
    d_query = selection_queries(x, chosen, sizes, batch, interpret)
    d_keys = selection_keys(x, chosen, sizes, batch, interpret)

    def like(x, wanted):
        x = x.reshape(*wanted.shape[:-1], -1)[..., : wanted.shape[-1]]
        return x.astype(wanted.dtype)

    return like(d_query, mean_query), like(d_keys, summary_keys), None


_select.defvjp(_save, _backward)
