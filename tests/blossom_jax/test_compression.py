"""Summary keys against the same in NumPy loops, over odd sizes, packed rows and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from blossom_jax.compression import KeyCompressor, is_compressor_parameter, summary_keys
from blossom_jax.config import ModelConfig

G, D = 2, 4


def row(*lengths):
    """Returns positions of sequences one after another; a negative length is padding."""
    return np.concatenate([np.arange(n) if n > 0 else np.full(-n, -1) for n in lengths])


def make_inputs(positions, window):
    rng = np.random.default_rng(0)
    k = rng.normal(size=(*positions.shape, G, D))
    return k, rng.normal(size=(G, window, D)), rng.normal(size=(window * D, D))


def loops(k, positions, intra_block_positions, weight, *, block_size, stride):
    """The definition, token by token, with tanh for the learned layers."""
    window = intra_block_positions.shape[1]
    b, length = positions.shape
    out = np.zeros((b, -(-length // block_size), G, D))
    for row, first, g in np.ndindex(b, length, G):
        position = positions[row, first]
        last = first + block_size - 1
        complete = last < length and positions[row, last] == position + block_size - 1
        if position < 0 or position % block_size or not complete:
            continue
        for end in range(first + stride, last + 2, stride):
            tokens = np.arange(end - window, end)
            inside = (tokens >= first - position)[:, None]
            keys = np.where(inside, k[row, np.maximum(tokens, 0), g], 0) + intra_block_positions[g]
            key = np.tanh(keys.reshape(-1) @ weight)
            out[row, first // block_size, g] += key * stride / block_size
    return out


CASES = [
    # block_size, stride, window, rows
    (4, 4, 4, [row(11), row(4, 4, 3)]),  # windows that do not overlap
    (4, 2, 4, [row(1, 9, 3), row(-2, 5, -3, 3)]),
    (4, 2, 8, [row(3, 17, 5, -2), row(27), row(-27)]),
    (6, 3, 5, [row(1, 20, 4), row(25)]),  # sizes that are no powers of two
    (3, 1, 10, [row(23), row(2, 12, 9)]),  # windows over four blocks
    (8, 4, 8, [row(5), row(5)]),  # rows shorter than a block
    (8, 8, 16, [row(1), row(-1)]),
]


@pytest.mark.parametrize(("block_size", "stride", "window", "rows"), CASES)
def test_summary_keys(block_size, stride, window, rows):
    positions = np.stack(rows)
    k, intra, weight = make_inputs(positions, window)
    sizes = {"block_size": block_size, "stride": stride}

    @jax.jit
    def compute(positions, k, intra, weight):
        return summary_keys(k, positions, intra, lambda w: jnp.tanh(w @ weight), **sizes)

    arrays = (jnp.asarray(x, jnp.float32) for x in (k, intra, weight))
    got = compute(jnp.asarray(positions, jnp.int32), *arrays)
    want = loops(k, positions, intra, weight, **sizes)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert want.any() == bool((positions >= block_size - 1).any())


def test_gradients_agree_with_differences():
    positions = np.stack([row(3, 17, -2)])
    k, intra, weight = make_inputs(positions, 6)

    @jax.jit
    def f(k, intra):
        keys = summary_keys(
            k,
            jnp.asarray(positions, jnp.int32),
            intra,
            lambda w: w @ weight,
            block_size=4,
            stride=2,
        )
        return (keys**2).sum()

    arguments = (jnp.asarray(k, jnp.float32), jnp.asarray(intra, jnp.float32))
    check_grads(f, arguments, order=1, modes=["rev"], rtol=1e-2, eps=0.01)
    assert not jax.grad(f)(*arguments)[0, positions[0] < 0].any()


def test_memory_grows_with_the_row_not_with_its_square():
    config = ModelConfig(hidden_size=16)
    compressor = KeyCompressor(config, rngs=nnx.Rngs(0))

    def temporary_bytes(length):
        k = jax.ShapeDtypeStruct((1, length, 2, config.head_size), jnp.float32)
        positions = jax.ShapeDtypeStruct((1, length), jnp.int32)
        gradient = jax.grad(lambda k, positions: compressor(k, positions).sum())
        compiled = jax.jit(gradient).lower(k, positions).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8192) < 4.5 * temporary_bytes(2048)


def test_compressor_parameters_are_told_by_their_path():
    module = nnx.Dict(
        compressor=KeyCompressor(ModelConfig(), rngs=nnx.Rngs(0)),
        out=nnx.Linear(2, 2, rngs=nnx.Rngs(0)),
    )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(module, nnx.Param))]
    assert sum(map(is_compressor_parameter, paths)) == 5
    assert len(paths) == 7
