"""What must hold for any rows at all: packing, padding, order, the past, and the dense limit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import IMPLEMENTATIONS, D, G, H, row
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import blossom_attention, selected_attention, triton_limits
from pallas_kernels.positions import has_block

LENGTH, S, N, W = 48, 4, 2, 3
sequences = st.lists(st.integers(1, 16), min_size=1, max_size=3)
quick = settings(max_examples=12, deadline=None, derandomize=True)


def arrays(seed, length=LENGTH, batch=1):
    rng = np.random.default_rng(seed)
    shapes = [(length, H, D), (length, G, D), (length, G, D), (length // S, G, D), (length, H, 2)]
    return [rng.normal(size=(batch, *shape)).astype(np.float32) for shape in shapes]


@functools.partial(jax.jit, static_argnames=("causal", "implementation", "selection_gradient"))
def attend(*inputs, causal=True, implementation="xla", selection_gradient="none"):
    return blossom_attention(
        *inputs,
        **{"block_size": S, "num_selected": N, "window": W, "causal": causal},
        selection_gradient=selection_gradient,
        implementation=implementation,
    )


by_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.mark.parametrize(
    "implementation, causal", [("xla", True), ("xla", False), ("triton_interpret", True)]
)
@given(lengths=sequences, shift=st.integers(0, 3), seed=st.integers(0, 99))
@quick
def test_packed_sequences_equal_each_alone(implementation, causal, lengths, shift, seed):
    inputs, options = arrays(seed), {"causal": causal, "implementation": implementation}
    positions = row(LENGTH, *[-shift] * bool(shift), *lengths)
    packed = attend(*inputs, positions[None], **options)
    begin = shift
    for n in lengths:
        alone = [np.zeros_like(x) for x in inputs]
        for x, one in zip(inputs, alone, strict=True):
            if x.shape[1] == LENGTH:
                one[:, :n] = x[:, begin : begin + n]
            else:  # slot w of the packed row is slot w - begin // S of the sequence alone
                one[:, : n // S] = x[:, begin // S : begin // S + n // S]
        got = attend(*alone, row(LENGTH, n)[None], **options)
        np.testing.assert_allclose(got[0, :n], packed[0, begin : begin + n], atol=2e-6)
        begin += n


@by_implementation
@given(lengths=sequences, seed=st.integers(0, 99))
@quick
def test_content_of_padding_never_matters(implementation, lengths, seed):
    attend_here = functools.partial(attend, implementation=implementation)
    positions = row(LENGTH, *lengths)
    clean = arrays(seed)
    dirty = [x.copy() for x in clean]
    for x in dirty:
        if x.shape[1] == LENGTH:
            x[0, positions < 0] = np.nan
    dirty[3][0, ~has_block(jnp.asarray(positions)[None], block_size=S)[0]] = (
        np.nan
    )  # nobody may select it
    want, got = attend_here(*clean, positions[None]), attend_here(*dirty, positions[None])
    np.testing.assert_array_equal(got, want)
    assert not np.asarray(got)[0, positions < 0].any()
    trained = functools.partial(attend_here, selection_gradient="straight_through")
    total = lambda *x: trained(*x, positions[None]).sum()  # noqa: E731
    gradients = jax.grad(total, argnums=range(5))(*dirty)
    assert all(np.isfinite(g).all() for g in gradients)


@by_implementation
def test_what_is_selected_at_padding_never_matters(implementation):
    positions = row(LENGTH, 20)[None]
    qkv = arrays(0)[:3]
    for x in qkv:
        x[positions < 0] = np.nan
    first = jnp.asarray(positions)[..., None, None] * jnp.ones((G, 1), jnp.int32)

    @jax.jit
    def gradients(slots):
        def total(*qkv):
            options = {"block_size": S, "implementation": implementation}
            rest = slots, jnp.zeros(slots.shape), jnp.asarray(positions)
            out = selected_attention(*qkv, *rest, **options)
            return out.sum(), out

        return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*qkv)

    wanted = gradients(jnp.where(first >= S, 0, -1))
    found = gradients(jnp.where((first >= S) | (first < 0), 0, -1))
    for want, got in zip(*map(jax.tree.leaves, (wanted, found)), strict=True):
        np.testing.assert_array_equal(got, want)
        assert np.isfinite(got).all() and not np.asarray(got)[positions < 0].any()


def test_gradient_at_padding_is_exactly_zero():
    positions = row(LENGTH, 20, -3, 9)
    gradients = jax.grad(lambda *x: attend(*x, positions[None]).sum(), argnums=(0, 1, 2, 4))(
        *arrays(0)
    )
    assert not any(np.asarray(g)[0, positions < 0].any() for g in gradients)


@by_implementation
def test_permuting_rows_permutes_outputs(implementation):
    positions = np.stack([row(LENGTH, 40), row(LENGTH, 5, 20), row(LENGTH, -LENGTH)])
    inputs, order = arrays(1, batch=3), [2, 0, 1]
    want = attend(*inputs, positions, implementation=implementation)[np.array(order)]
    permuted = (x[order] for x in inputs)
    got = attend(*permuted, positions[order], implementation=implementation)
    np.testing.assert_array_equal(got, want)


@by_implementation
@given(cut=st.integers(1, LENGTH - 1), seed=st.integers(0, 99))
@quick
def test_the_future_never_changes_the_past(implementation, cut, seed):
    positions = row(LENGTH, LENGTH)[None]
    inputs, other = arrays(seed), arrays(seed + 1)
    changed = [
        np.concatenate([x[:, :cut], y[:, cut:]], 1) for x, y in zip(inputs, other, strict=True)
    ]
    # A summary key belongs to the past once its block has ended.
    changed[3] = np.concatenate([inputs[3][:, : cut // S], other[3][:, cut // S :]], 1)
    want, got = (attend(*x, positions, implementation=implementation) for x in (inputs, changed))
    np.testing.assert_array_equal(got[:, :cut], want[:, :cut])


@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_everything_selected_is_dense_attention(implementation):
    q, k, v, _, _ = arrays(2)
    positions = row(LENGTH, LENGTH)[None]
    slots = np.arange(LENGTH // S)[None, None] * np.ones((LENGTH, 1, 1), np.int32)
    before = slots < np.arange(LENGTH)[:, None, None] // S
    slots = np.where(before, slots, -1).astype(np.int32)
    slots = np.broadcast_to(slots[None], (1, LENGTH, G, LENGTH // S))
    got = selected_attention(
        q,
        k,
        v,
        jnp.asarray(slots),
        jnp.zeros(slots.shape),
        jnp.asarray(positions),
        block_size=S,
        implementation=implementation,
    )
    want = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_rows_in_groups_give_the_same_numbers(monkeypatch):
    inputs = arrays(3, batch=6)
    rows = row(LENGTH, 20, 20), row(LENGTH, LENGTH), row(LENGTH, -1, 30)
    positions = jnp.stack(rows * 2)

    def gradients():
        def loss(*floats):
            out = blossom_attention(
                *(*floats, positions),
                **{"block_size": S, "num_selected": N, "window": W},
                selection_gradient="straight_through",
                implementation="triton_interpret",
            )
            return (out**2).sum(), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))(*inputs)

    whole = gradients()
    q, k, *_ = inputs
    of_a_row = triton_limits.row_elements(q, k.shape[2], block_size=S, num_selected=N)
    monkeypatch.setattr(triton_limits, "MOST_ELEMENTS", 2 * of_a_row)
    assert triton_limits.row_groups(q, of_a_row) == 3
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    jax.tree.map(same, gradients(), whole)


@pytest.mark.parametrize("batch, most, groups", [(6, 6, 1), (6, 5, 2), (6, 1, 6), (7, 3, 7)])
def test_groups_of_rows_are_the_fewest_of_equal_size(monkeypatch, batch, most, groups):
    q = jax.ShapeDtypeStruct((batch, 8, 2, 24), jnp.float32)
    of_a_row = triton_limits.row_elements(q, 1, block_size=4, num_selected=4)
    assert of_a_row == 8 * 2 * 32 * 4
    monkeypatch.setattr(triton_limits, "MOST_ELEMENTS", most * of_a_row + 1)
    assert triton_limits.row_groups(q, of_a_row) == groups


@pytest.mark.parametrize("blocks, rows", [({}, 5 * 2), ({"block_size": 8}, 2 * 8 * 2)])
def test_gradients_of_whole_blocks_count_where_there_are_blocks(blocks, rows):
    q = jax.ShapeDtypeStruct((4, 5, 2, 24), jnp.float32)
    assert triton_limits.row_elements(q, 2, **blocks) == rows * 32
