"""Mistakes are named before anything is traced; implementations are chosen by name."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import row
from jax.extend.core import Primitive
from jax.interpreters import mlir

import pallas_kernels
from pallas_kernels import capable, dispatch, validate_positions
from pallas_kernels.triton_limits import refusal, shared_memory

B, L, H, G, D, S, N = 2, 32, 4, 2, 8, 4, 3
GOOD = {
    "q": jnp.ones((B, L, H, D)),
    "k": jnp.ones((B, L, G, D)),
    "v": jnp.ones((B, L, G, D)),
    "summary_keys": jnp.ones((B, L // S, G, D)),
    "gate": jnp.ones((B, L, H, 2)),
    "positions": jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32), (B, L)),
}
SIZES = {"block_size": S, "num_selected": N, "window": 8}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": jnp.ones((B, L, D))}, r"q must be \[B, L, H, D\], got shape \(2, 32, 8\)"),
        ({"q": jnp.ones((0, L, H, D))}, r"q must not be empty, got shape \(0, 32, 4, 8\)"),
        ({"positions": jnp.zeros((B, L + 1), jnp.int32)}, r"positions must be .* \(2, 33\)"),
        ({"positions": jnp.zeros((B, L))}, "positions must be int32, got float32"),
        ({"k": jnp.ones((B, L, G, D + 1))}, "k and v must have one shape"),
        (
            {"k": jnp.ones((B, L, 3, D)), "v": jnp.ones((B, L, 3, D))},
            "4 must be a multiple of .* 3",
        ),
        ({"q": jnp.ones((B, L, H, D), jnp.bfloat16)}, "must share a dtype"),
        ({"q": jnp.ones((B, L, H, D), int)}, "q must be of a floating-point dtype, got int32"),
        (
            {"summary_keys": jnp.ones((B, L // S, G, D), int)},
            "summary_keys must be of a floating-point dtype, got int32",
        ),
        (dict.fromkeys("kv", jnp.ones((B, L, 0, D))), "there must be at least 1 kv head, got 0"),
        ({"summary_keys": jnp.ones((B, L, G, D))}, r"summary_keys must be .*\(2, 8, G, 8\)"),
        ({"summary_keys": jnp.ones((B, L // S, 1, D))}, "summary_keys have 1 heads, k has 2"),
        ({"gate": jnp.ones((B, L, H))}, r"gate must be \[B, L, H, 2\]"),
        ({"block_size": 0}, "block_size must be an integer of at least 1, got 0"),
        ({"num_selected": 1.5}, "num_selected must be an integer of at least 1, got 1.5"),
        ({"window": -1}, "window must be an integer of at least 1, got -1"),
        ({"max_history": 0}, "max_history must be an integer of at least 1, got 0"),
        ({"selection_gradient": "x"}, "selection_gradient='x' must be one of none, straight_thr"),
        ({"implementation": "cuda"}, "implementation='cuda' must be None or one of reference, xla"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {**GOOD, **SIZES, **change}
    arrays = [arguments.pop(name) for name in GOOD]
    with pytest.raises(ValueError, match=message):
        pallas_kernels.blossom_attention(*arrays, **arguments)


def test_more_blocks_than_there_are_cost_no_more():
    rng, slots = np.random.default_rng(0), L // S
    arrays = [GOOD[name] for name in GOOD]
    arrays[0], arrays[3] = (jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in arrays[0:4:3])
    few, many = ({**SIZES, "num_selected": n} for n in (slots, 20_000))
    attend = pallas_kernels.blossom_attention
    np.testing.assert_array_equal(attend(*arrays, **many), attend(*arrays, **few))

    select = functools.partial(pallas_kernels.block_selection, *arrays[0:4:3], GOOD["positions"])
    wanted = select(block_size=S, num_selected=slots)
    found = select(block_size=S, num_selected=20_000)
    for got, want, nothing in zip(found, wanted, (-1, 0), strict=True):
        np.testing.assert_array_equal(got[..., :slots], want)
        assert got.shape[-1] == 20_000 and (got[..., slots:] == nothing).all()


def test_slots_of_another_shape_are_named():
    slots = jnp.zeros((B, L, H, N), jnp.int32)
    with pytest.raises(ValueError, match=r"slots must be int32 \[B, L, G, N\] = \(2, 32, 2, N\)"):
        pallas_kernels.selected_attention(
            *(GOOD[x] for x in "qkv"),
            slots,
            jnp.zeros(slots.shape),
            GOOD["positions"],
            block_size=S,
        )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"causal": False}, "causal=False: its kernels are causal"),
        ({"block_size": 200, "summary_keys": jnp.ones((B, 1, G, D))}, "block_size=200 is above"),
        ({"window": 129}, "window=129 is above 128"),
        (
            {"summary_keys": jnp.ones((B, L // S, G, D), jnp.float16)},
            "summary_keys of float16 is neither bfloat16 nor float32",
        ),
    ],
)
def test_what_the_kernels_cannot_serve_is_named(change, message):
    arguments = {**GOOD, **SIZES, **change}
    arrays = [arguments.pop(name) for name in GOOD]
    with pytest.raises(NotImplementedError, match=f"cannot run with implem.*triton.*{message}"):
        pallas_kernels.blossom_attention(*arrays, **arguments, implementation="triton")


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((1, 8, 2, 129), "float32", "head_size=129 is above 128"),
        ((1, 8, 34, 16), "float32", "17 query heads share a key"),
        ((1, 8, 2, 16), "float16", "q of float16 is neither"),
        ((1, 2**17 + 1, 2, 16), "bfloat16", "rows of length=131073 are above 131072"),
        ((1, 2**17, 32, 128), "bfloat16", "a row has 2147483648 elements .* int32"),
        ((2**15, 2**14, 2, 1), "bfloat16", "4294967296 blocks are selected; offsets .* int32"),
    ],
)
def test_shapes_that_the_kernels_cannot_serve_are_named(shape, dtype, message):
    q = jax.ShapeDtypeStruct(shape, dtype)
    assert re.search(message, refusal(q, 2, causal=True, num_selected=4))


def test_a_selection_that_the_kernels_cannot_serve_is_named():
    message = refusal(GOOD["q"], G, causal=True, num_selected=65)
    assert message and "num_selected=65 is above 64" in message


def test_what_blocks_give_to_keys_and_values_is_counted_where_there_are_blocks():
    q = jax.ShapeDtypeStruct((1, 2**17, 64, 128), "bfloat16")
    message = refusal(q, 64, causal=True, block_size=16, num_selected=1)
    assert message and "a row has 2147483648 elements" in message
    assert refusal(q, 64, causal=True, window=8) is None


@pytest.mark.parametrize(
    ("dtype", "head_size", "block_size", "needed"),
    [
        ("float32", 64, 64, 122_880),
        ("float32", 128, 64, 221_184),
        ("float32", 128, 128, None),
        ("bfloat16", 128, 64, 65_536),
        ("bfloat16", 128, 128, 114_688),
        ("bfloat16", 24, 8, 6 * 32 * 16 + 16_384),
    ],
)
def test_shared_memory_is_what_compiling_found(dtype, head_size, block_size, needed):
    q = jax.ShapeDtypeStruct((1, 256, 2, head_size), dtype)
    found = refusal(q, 2, causal=True, block_size=block_size)
    if needed is None:
        assert "needs 417792 bytes of shared memory, and no GPU has more than 232448" in found
    else:
        assert found is None and shared_memory(q, block_size) == needed


def here_is(monkeypatch, capability):
    """Has jax find a GPU of some compute capability."""
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [device])


def test_the_default_device_chooses(monkeypatch):
    here_is(monkeypatch, "9.0")
    assert dispatch.choose("op", None, refusal=None) == "triton"
    with jax.default_device(jax.devices("cpu")[0]):
        assert dispatch.choose("op", None, refusal=None) == "xla"


@pytest.mark.parametrize(
    ("capability", "available"), [("8.0", 166_912), ("8.9", 101_376), ("9.0", 232_448)]
)
def test_a_gpu_with_too_little_shared_memory_takes_xla(monkeypatch, caplog, capability, available):
    here_is(monkeypatch, capability)
    for needed, want in ((available, "triton"), (available + 1, "xla")):
        name = f"op of {needed}"
        assert dispatch.choose(name, None, refusal=None, shared_memory=needed) == want
    assert f"bytes of shared memory, this GPU has {available}" in caplog.text


def test_the_ops_tell_what_shared_memory_they_need(monkeypatch):
    here_is(monkeypatch, "8.9")
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in _wide_f32()]
    sizes = {"block_size": 64, "num_selected": 2, "window": 8}
    call = functools.partial(pallas_kernels.blossom_attention, **sizes)
    assert "pallas_call" not in str(jax.make_jaxpr(call)(*shapes))


def _wide_f32():
    heads = [((1, 128, n, 64), "float32") for n in (2, 1, 1)]
    return *heads, ((1, 2, 1, 64), "float32"), ((1, 128, 2, 2), "float32"), ((1, 128), "int32")


def test_a_named_implementation_never_looks_at_the_devices(monkeypatch):
    def look(*_, **__):
        raise AssertionError("looked at the devices")

    monkeypatch.setattr(jax, "local_devices", look)
    assert dispatch.choose("power_attention", "triton", refusal=None) == "triton"
    with pytest.raises(AssertionError, match="looked"):
        dispatch.choose("power_attention", None, refusal=None)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the kernels run")
def test_kernels_by_name_on_a_cpu_say_what_they_need():
    arrays = GOOD["q"], GOOD["k"], GOOD["v"], GOOD["positions"]
    with pytest.raises(NotImplementedError, match="need an NVIDIA GPU; this program is for a CPU"):
        pallas_kernels.power_attention(*arrays, window=8, implementation="triton")


def test_devices_are_known_inside_of_shard_map_too():
    old = types.SimpleNamespace(platform="gpu", compute_capability="7.5")
    mesh = types.SimpleNamespace(devices=np.array([[old]]))
    for context in ({"mesh": mesh}, {"device_assignment": (old,)}):
        module = types.SimpleNamespace(axis_context=types.SimpleNamespace(**context))
        with pytest.raises(NotImplementedError, match="compute capability 8.0, this GPU has 7.5"):
            capable._lower_for_cuda(types.SimpleNamespace(module_context=module), 0)

    seen = []

    def lower(ctx, x):
        seen.append(ctx.module_context.axis_context)
        return [x]

    here = Primitive("here")
    here.def_abstract_eval(lambda x: x)
    mlir.register_lowering(here, lower)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("rows",), auto, devices=jax.devices()[:2])
    rows = jax.sharding.PartitionSpec("rows")
    mapped = jax.shard_map(here.bind, mesh=mesh, in_specs=rows, out_specs=rows)
    jax.jit(mapped).lower(jnp.ones(2))
    assert seen[0].mesh.devices.size == 2
    assert capable._devices(seen[0]) == ()  # CPUs, for which another rule lowers


@pytest.mark.parametrize(
    "capability, max_history, rule, want",
    [
        ("9.0", 4096, None, "triton"),
        ("8.0", 4096, None, "triton"),
        ("7.5", 4096, None, "xla"),
        ("gfx942", 4096, None, "xla"),
        ("9.0", 4096, "window=500 is above 128", "xla"),
        ("9.0", 10, None, "xla"),
    ],
)
def test_the_local_gpu_and_the_length_choose(monkeypatch, capability, max_history, rule, want):
    here_is(monkeypatch, capability)
    monkeypatch.setattr(dispatch, "crossover", lambda op: 64)
    assert dispatch.choose("op", None, refusal=rule, max_history=max_history) == want


def test_a_fallback_says_why_once(monkeypatch, caplog):
    here_is(monkeypatch, "7.5")
    for _ in range(2):
        dispatch.choose("power_attention", None, refusal=None)
    message = "power_attention runs with implementation='xla': Triton needs compute capability 8.0"
    assert [record.message.startswith(message) for record in caplog.records] == [True]
    assert "this GPU has 7.5" in caplog.text


@pytest.mark.parametrize(
    "positions, max_history, message",
    [
        ([[0, 1, 3]], None, r"positions\[0, 2\] is 3 after 1"),
        ([[0, 1], [5, 6]], None, r"positions\[1, 0\] is 5 after -1"),
        ([[0, -2]], None, r"positions\[0, 1\] is -2"),
        ([[-1, 1]], None, r"positions\[0, 1\] is 1 after -1"),
        ([[0, 1, 2]], 2, r"positions\[0, 2\] is 2 .* below max_history=2"),
        ([0, 1], None, r"positions must be int\[B, L\]"),
    ],
)
def test_validate_positions_names_the_first_mistake(positions, max_history, message):
    with pytest.raises(ValueError, match=message):
        validate_positions(np.array(positions), max_history)


def test_validate_positions_accepts_every_kind_of_row():
    validate_positions(np.stack([row(20, 5, -2, 3, 1), row(20, -20), row(20, 20)]), 20)
