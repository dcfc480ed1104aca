"""One list of rows and sizes that every implementation of every op is tested on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels

# Each is compared with "reference" in float64; on a GPU the Triton kernels are, see test_gpu.py.
IMPLEMENTATIONS = ("xla", "triton_interpret")
H, G, D = 4, 2, 8


def row(length: int, *sequences: int) -> np.ndarray:
    """Packs sequences of the given lengths into a row; -n stands for n tokens of padding."""
    parts = [np.arange(n) if n > 0 else np.full(-n, -1) for n in sequences]
    parts.append(np.full(length - sum(map(len, parts)), -1))
    return np.concatenate(parts).astype(np.int32)


ROWS = {
    "ragged": np.stack([row(80, 75), row(80, 80), row(80, 3)]),
    "packed": np.stack([row(80, 30, -3, 25, 1, 10), row(80, -5, 75), row(80, 1, 1, 2, 3, 60)]),
    "padding_only": np.stack([row(80, -80), row(80, 79), row(80, -79, 1)]),
    "one_token": row(1, 1)[None],
    "odd_length": row(37, 20, 17)[None],
    "short": np.stack([row(57, 20, 17, 20), row(57, -3, 20, 1, 13, -4, 16), row(57, -57)]),
    "long": row(600, 300, -30, 200, 1, 69)[None],
}


def either(interpreted, on_gpu):
    """Returns parameters of a test of kernels: in interpret mode, or on a GPU if there is one.

    Args:
      interpreted: the value where there is none.
      on_gpu: the value for the GPU's own kernels.
    """
    here = jax.default_backend() == "gpu"
    there_is = pytest.mark.skipif(here, reason="the kernels themselves run")
    there_is_none = pytest.mark.skipif(not here, reason="there is no GPU here")
    return (
        pytest.param(interpreted, marks=there_is, id="interpret"),
        pytest.param(on_gpu, marks=[pytest.mark.gpu, there_is_none], id="triton"),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows and sizes of one call."""

    rows: str = "packed"
    block_size: int = 4
    num_selected: int = 3
    window: int = 8
    causal: bool = True
    mask_own_block: bool = False
    selection_gradient: str = "none"
    max_history: int | None = None
    spread: float = 1.0  # of the summary keys; wide scores make the 1e-10 rule bite
    num_heads: int = H
    num_kv_heads: int = G
    head_size: int = D

    def __str__(self):
        fields = dataclasses.asdict(self).items()
        return ",".join(f"{k}={v}" for k, v in fields if v != getattr(Case(), k)) or "default"

    def sizes(self, *names):
        """The named keyword arguments of an op."""
        return {name: getattr(self, name) for name in names}

    @property
    def positions(self):
        return ROWS[self.rows]


SELECTION = ("block_size", "num_selected", "causal", "mask_own_block")
BLOSSOM = (*SELECTION, "window", "selection_gradient", "max_history")
CASES = [
    Case(),
    Case(rows="ragged", selection_gradient="straight_through"),
    Case(rows="padding_only"),
    Case(rows="one_token", selection_gradient="straight_through"),
    Case(rows="odd_length", num_kv_heads=4),
    Case(rows="long", block_size=16, num_selected=4, selection_gradient="straight_through"),
    Case(rows="long", spread=30.0, num_kv_heads=1),
    Case(rows="packed", block_size=16, num_selected=4, max_history=75),
    Case(rows="packed", block_size=16, num_selected=4, max_history=75, spread=40.0),
    Case(rows="long", block_size=64, num_selected=4, max_history=300),
    Case(rows="packed", window=1, num_selected=40),
    Case(rows="packed", window=40, block_size=2),
    Case(rows="packed", causal=False, selection_gradient="straight_through"),
    Case(rows="ragged", causal=False, mask_own_block=True),
    Case(rows="padding_only", causal=False, block_size=16, window=3),
    Case(rows="long", causal=False, mask_own_block=True, selection_gradient="straight_through"),
    Case(rows="packed", block_size=6, num_heads=3, num_kv_heads=1, head_size=20),
    # In XLA three chunks a row, whose borders cut histories and blocks.
    Case("short", 6, 2, max_history=20, selection_gradient="straight_through"),
    # A group in two parts, and a band in two products.
    Case("long", 40, 2, 20, num_heads=8, num_kv_heads=1, selection_gradient="straight_through"),
]

# Sizes that only a real GPU is quick enough for.
LARGE_CASES = [
    Case("long", 16, 4, num_heads=8, head_size=16),
    Case("long", 32, 4, num_heads=8, num_kv_heads=1, head_size=32),
    Case("long", 64, 2, num_heads=4, head_size=64, selection_gradient="straight_through"),
    Case("long", 16, 16, num_heads=2, head_size=128, selection_gradient="straight_through"),
]


def runs(cases, implementations=IMPLEMENTATIONS):
    """Pairs cases with the implementations that serve them: the Triton kernels are causal."""
    return [
        (case, name)
        for case in cases
        for name in implementations
        if case.causal or not name.startswith("triton")
    ]


@functools.cache
def inputs(case: Case) -> dict[str, np.ndarray]:
    """Random inputs in float64 that bf16 holds exactly, so that every dtype selects the same."""
    rng = np.random.default_rng(0)
    (b, length), g = case.positions.shape, case.num_kv_heads
    h, d = case.num_heads, case.head_size
    slots = -(-length // case.block_size)
    arrays = {
        "q": rng.normal(size=(b, length, h, d)),
        "k": rng.normal(size=(b, length, g, d)),
        "v": rng.normal(size=(b, length, g, d)),
        "summary_keys": rng.normal(size=(b, slots, g, d)) * case.spread,
        "gate": rng.uniform(size=(b, length, h, 2)),
        "cotangent": rng.normal(size=(b, length, h, d)),
    }
    return {name: np.asarray(x.astype(jnp.bfloat16), np.float64) for name, x in arrays.items()}


def run(op, case: Case, names, sizes, implementation, dtype, **more):
    """Returns the op's output and its gradients by name, as float64 NumPy."""
    arrays = inputs(case)

    def call(differentiated):
        out = getattr(pallas_kernels, op)(
            *(differentiated[name] for name in names),  # a traced dict comes back sorted
            *(jnp.asarray(x) for x in more.values()),
            jnp.asarray(case.positions),
            **case.sizes(*sizes),
            implementation=implementation,
        )
        return (out.astype(cotangent.dtype) * cotangent).sum(), out

    with jax.enable_x64(dtype == "float64"):
        cotangent = jnp.asarray(arrays["cotangent"], jnp.promote_types(dtype, jnp.float32))
        values = {name: jnp.asarray(arrays[name], dtype) for name in names}
        (_, out), gradients = jax.jit(jax.value_and_grad(call, has_aux=True))(values)
        widen = functools.partial(np.asarray, dtype=np.float64)
        return widen(out), {name: widen(x) for name, x in gradients.items()}


def relative_error(got, want) -> float:
    """Relative Frobenius error; absolute where nothing is wanted."""
    norm = np.linalg.norm(want)
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / (norm if norm > 1e-6 else 1))
