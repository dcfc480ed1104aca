import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blossom_jax import losses, sharding

NUM_ITEMS, ROWS, SIZE, TOKENS = 45, 64, 8, 48


def dense_formula(
    hidden, table, targets, include_padding=False, num_items=NUM_ITEMS, label_smoothing=0.0
):
    """Loss and gradients in float64 NumPy, with all logits at once."""
    hidden, table = np.asarray(hidden, np.float64), np.asarray(table, np.float64)
    first = 0 if include_padding else 1
    loss, dhidden, dtable = 0.0, np.zeros_like(hidden), np.zeros_like(table)
    for t, target in enumerate(targets):
        if target == 0:
            continue
        items = table[first : num_items + 1]
        logits = items @ hidden[t]
        lse = logits.max() + np.log(np.exp(logits - logits.max()).sum())
        label = np.full(len(items), label_smoothing / len(items))
        label[target - first] += 1 - label_smoothing
        loss += lse - label @ logits
        difference = np.exp(logits - lse) - label
        dhidden[t] = difference @ items
        dtable[first : num_items + 1] += np.outer(difference, hidden[t])
    return loss, dhidden, dtable


def inputs(seed=0, *, scale=1.0, with_target=0.6):
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((TOKENS, SIZE)).astype(np.float32) * scale
    table = rng.standard_normal((ROWS, SIZE)).astype(np.float32)
    targets = rng.integers(1, NUM_ITEMS + 1, TOKENS)
    targets[rng.random(TOKENS) > with_target] = 0
    return hidden, table, targets.astype(np.int32)


def loss_and_gradients(hidden, table, targets, **options):
    options = {"num_items": NUM_ITEMS, "chunk": 7, **options}
    loss = functools.partial(losses.full_cross_entropy, **options)
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, count), gradients = run(hidden, table, targets)
    assert count == np.sum(np.asarray(targets) > 0)
    return value, *gradients


def assert_equal_to_dense(found, hidden, table, targets, tolerance=1e-6, **options):
    for ours, dense in zip(found, dense_formula(hidden, table, targets, **options), strict=True):
        error = np.linalg.norm(np.asarray(ours, np.float64) - dense)
        assert error <= tolerance * max(np.linalg.norm(dense), 1e-12)


@pytest.mark.parametrize("chunk", [1, 7, TOKENS, 1000])
@pytest.mark.parametrize("with_target", [0.0, 0.03, 0.6, 1.0])
def test_dense_formula(chunk, with_target):
    case = inputs(with_target=with_target)
    assert_equal_to_dense(loss_and_gradients(*case, chunk=chunk), *case)


def test_padding_takes_part_only_when_asked():
    case = inputs()
    found = loss_and_gradients(*case, include_padding=True)
    assert_equal_to_dense(found, *case, include_padding=True)
    assert np.any(np.asarray(found[2])[0] != 0)


@pytest.mark.parametrize("mesh", [None, (2, 4)])
def test_label_smoothing(mesh):
    case = inputs()
    mesh = mesh and sharding.make_mesh(*mesh)
    found = loss_and_gradients(*case, label_smoothing=0.1, mesh=mesh)
    assert_equal_to_dense(found, *case, label_smoothing=0.1)


def test_chunks_shrink_as_the_catalogue_grows():
    at_once = losses.cross_entropy.tokens_at_once
    assert [at_once(10**n) for n in (4, 5, 6, 7)] == [13376, 1280, 128, 64]


@pytest.mark.parametrize(
    ("backend", "chunk", "at_once", "loops"),
    [
        ("cpu", 0, 4, [True, False]),
        ("gpu", 0, 48, [False, False]),
        ("gpu", 8, 8, [False, True]),
        ("gpu", 4, 4, [True, False]),  # more turns than are taken without need
    ],
)
def test_the_chunk_suits_the_device(monkeypatch, backend, chunk, at_once, loops):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(losses.objective, "_CHUNK", 4)
    loss = losses.make_loss(losses.LossConfig(loss_chunk=chunk), num_items=NUM_ITEMS)
    hidden, table, targets = inputs()
    total = jax.make_jaxpr(lambda *arrays: loss(*arrays, None)[0])
    program = str(total(hidden, table, targets))
    assert f"f32[{at_once},{ROWS}]" in program
    assert (f"f32[{TOKENS},{ROWS}]" in program) == (at_once == TOKENS)
    # A GPU would ask its host before each turn of a loop whose end it does not know.
    assert [word in program for word in ("while[", "scan[")] == loops


def test_a_loop_over_all_chunks_gives_the_same_on_a_mesh(monkeypatch):
    monkeypatch.setattr(sharding, "platform_of", lambda mesh: "gpu" if mesh else "cpu")
    case, mesh = inputs(with_target=0.3), sharding.make_mesh(2, 4)
    assert_equal_to_dense(loss_and_gradients(*case, mesh=mesh), *case)
    loss = functools.partial(losses.full_cross_entropy, num_items=NUM_ITEMS, chunk=7, mesh=mesh)
    program = str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(*case))
    assert "scan[" in program and "while[" not in program


def test_the_chunk_suits_the_devices_of_a_mesh():
    gpu = mock.Mock(platform="gpu")
    mesh = mock.Mock(spec=jax.sharding.Mesh, devices=np.array([[gpu]]))
    assert losses.objective._chunk(mesh, 5000) == 5000
    assert losses.objective._chunk(sharding.make_mesh(), 5000) == losses.objective._CHUNK


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8)])
def test_every_mesh_agrees(mesh):
    hidden, table, targets = inputs()
    targets[:6] = 0  # the first of 8 devices has nothing to do
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]])
    placed = (
        jax.device_put(hidden, jax.NamedSharding(mesh, sharding.ROWS)),
        jax.device_put(table, jax.NamedSharding(mesh, sharding.TABLE_ROWS)),
        jax.device_put(targets, jax.NamedSharding(mesh, sharding.ROWS)),
    )
    found = loss_and_gradients(*placed, mesh=mesh)
    assert_equal_to_dense(found, hidden, table, targets)
    assert found[1].sharding.is_equivalent_to(placed[0].sharding, 2)
    assert found[2].sharding.is_equivalent_to(placed[1].sharding, 2)


@pytest.mark.parametrize("mesh", [None, (2, 4)])
def test_surplus_rows_are_no_items_whatever_they_hold(mesh):
    # With 8 items in 64 rows, three of four devices have none, and their logits are far larger.
    hidden, table, targets = inputs()
    targets, table[0], table[9:] = targets % 9, 300 * table[0], 300 * table[9:]
    mesh = mesh and sharding.make_mesh(*mesh)
    found = loss_and_gradients(hidden, table, targets, num_items=8, mesh=mesh)
    assert_equal_to_dense(found, hidden, table, targets, num_items=8)
    assert np.all(np.asarray(found[2])[[0, *range(9, ROWS)]] == 0)


@pytest.mark.parametrize("shift", [-256, 256])
def test_logits_beyond_the_range_of_exp(shift):
    hidden, table, targets = inputs()
    hidden[:, 0], table[:, 0] = 16, shift / 16
    # A logit near 256 is itself rounded by 2**-16.
    assert_equal_to_dense(loss_and_gradients(hidden, table, targets), hidden, table, targets, 5e-5)


def test_bf16_sums_in_f32():
    hidden, table, targets = inputs()
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    found = loss_and_gradients(hidden, table, targets)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bfloat16, jnp.float32]
    table = np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32)
    assert_equal_to_dense(found, hidden, table, targets, tolerance=5e-3)
    dense_loss = dense_formula(hidden, table, targets)[0]
    assert abs(found[0] - dense_loss) <= 1e-6 * dense_loss


def check_kernels(hidden, table, targets, *, mesh=None, tolerance=5e-3, **options):
    """Checks the kernels of the loss, run operation by operation, against the formula."""
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    found = loss_and_gradients(
        hidden, table, targets, mesh=mesh, implementation="triton_interpret", **options
    )
    assert [x.dtype for x in found] == [jnp.float32, jnp.bfloat16, jnp.float32]
    rounded = np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32)
    assert_equal_to_dense(found, hidden, rounded, targets, tolerance, **options)
    return found


@pytest.mark.parametrize("with_target", [0.0, 0.03, 0.6, 1.0])
def test_kernels_equal_the_formula(with_target):
    check_kernels(*inputs(with_target=with_target))


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (2, 4)])
def test_kernels_agree_on_every_mesh(mesh):
    mesh = sharding.make_mesh(*mesh, devices=jax.devices()[: mesh[0] * mesh[1]])
    check_kernels(*inputs(), mesh=mesh)


@pytest.mark.parametrize("options", [{"include_padding": True}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("mesh", [None, (2, 4)])
def test_kernels_take_every_option(options, mesh):
    check_kernels(*inputs(), mesh=mesh and sharding.make_mesh(*mesh), **options)


@pytest.mark.parametrize("mesh", [None, (2, 4)])
def test_kernels_take_no_surplus_row_for_an_item(mesh):
    hidden, table, targets = inputs()
    targets, table[0], table[9:] = targets % 9, 300 * table[0], 300 * table[9:]
    mesh = mesh and sharding.make_mesh(*mesh)
    found = check_kernels(hidden, table, targets, mesh=mesh, num_items=8)
    assert np.all(np.asarray(found[2])[[0, *range(9, ROWS)]] == 0)


@pytest.mark.parametrize("shift", [-256, 256])
def test_kernels_take_logits_beyond_the_range_of_exp(shift):
    hidden, table, targets = inputs()
    hidden[:, 0], table[:, 0] = 16, shift / 16
    check_kernels(hidden, table, targets)


def test_kernels_under_vmap():
    cases = [inputs(seed, with_target=share) for seed, share in ((0, 0.9), (1, 0.1))]
    hidden, table, targets = map(np.stack, zip(*cases, strict=True))
    loss = functools.partial(
        losses.full_cross_entropy, num_items=NUM_ITEMS, implementation="triton_interpret"
    )
    run = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)))
    (values, _), gradients = run(jnp.asarray(hidden, jnp.bfloat16), table, targets)
    for i, (hidden, table, targets) in enumerate(cases):
        alone = loss_and_gradients(
            jnp.asarray(hidden, jnp.bfloat16), table, targets, implementation="triton_interpret"
        )
        together = values[i], gradients[0][i], gradients[1][i]
        for found, wanted in zip(together, alone, strict=True):
            np.testing.assert_allclose(
                np.asarray(found, np.float32), np.asarray(wanted, np.float32), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "size", "rows", "chosen"),
    [
        ("gpu", "9.0", "bfloat16", 64, 10**6, "triton"),
        ("gpu", "9.0", "bfloat16", 256, 10**7, "triton"),  # on each of two devices a half
        ("gpu", "9.0", "bfloat16", 256, 2 * 10**7, "xla"),
        ("gpu", "9.0", "bfloat16", 512, 10**6, "xla"),
        ("gpu", "9.0", "float32", 64, 10**6, "xla"),
        ("gpu", "7.5", "bfloat16", 64, 10**6, "xla"),
        ("cpu", None, "bfloat16", 64, 10**6, "xla"),
    ],
)
def test_kernels_are_chosen_where_they_run(platform, capability, dtype, size, rows, chosen):
    device = mock.Mock(platform=platform, compute_capability=capability)
    mesh = mock.Mock(devices=np.array([[device] * 2]), shape={"data": 1, "model": 2})
    hidden = jax.ShapeDtypeStruct((TOKENS, size), dtype)
    assert losses.softmax.choose(None, hidden, rows=rows, mesh=mesh) == chosen


def test_the_config_chooses_kernels_that_take_all_tokens_at_once():
    config = losses.LossConfig(loss_implementation="triton_interpret", loss_chunk=7)
    loss = losses.make_loss(config, num_items=NUM_ITEMS)
    hidden, table, targets = inputs()
    gradient = jax.grad(lambda *arrays: loss(*arrays, None)[0], argnums=(0, 1))
    program = str(jax.make_jaxpr(gradient)(jnp.asarray(hidden, jnp.bfloat16), table, targets))
    assert program.count("pallas_call[") == 2


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU here")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_kernels_equal_the_formula_on_a_gpu(smoothing):
    hidden, table, targets = inputs()
    hidden, table = (np.tile(x, (1, 16)) / 4 for x in (hidden, table))  # 128 wide
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    options = {"label_smoothing": smoothing}
    found = loss_and_gradients(hidden, table, targets, implementation="triton", **options)
    rounded = np.asarray(jnp.asarray(table, jnp.bfloat16), np.float32)
    assert_equal_to_dense(found, hidden, rounded, targets, 5e-3, **options)


def test_kernels_by_name_say_what_they_do_not_serve():
    hidden, table, targets = map(jnp.asarray, inputs())
    with pytest.raises(NotImplementedError, match="bfloat16, the hidden states are float32"):
        losses.full_cross_entropy(
            hidden, table, targets, num_items=NUM_ITEMS, implementation="triton"
        )
    with pytest.raises(ValueError, match="None or one of xla, triton, triton_interpret"):
        losses.full_cross_entropy(
            hidden, table, targets, num_items=NUM_ITEMS, implementation="cuda"
        )


def test_gradients_scale_with_the_cotangent():
    case = inputs()
    options = {"num_items": NUM_ITEMS}

    def scaled(hidden, table, targets):
        return -3.0 * losses.full_cross_entropy(hidden, table, targets, **options)[0]

    found = jax.jit(jax.grad(scaled, argnums=(0, 1)))(*case)
    for ours, dense in zip(found, dense_formula(*case)[1:], strict=True):
        np.testing.assert_allclose(ours, -3 * dense, atol=1e-5)


def test_vmap_over_models():
    cases = [inputs(seed, with_target=share) for seed, share in ((0, 0.9), (1, 0.1))]
    loss = functools.partial(losses.full_cross_entropy, num_items=NUM_ITEMS, chunk=7)
    run = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)))
    (values, _), gradients = run(*map(np.stack, zip(*cases, strict=True)))
    for i, case in enumerate(cases):
        assert_equal_to_dense((values[i], gradients[0][i], gradients[1][i]), *case)


@pytest.mark.parametrize("differentiate", [False, True])
def test_logits_exist_for_one_chunk_only(differentiate):
    loss = functools.partial(losses.full_cross_entropy, num_items=NUM_ITEMS, chunk=7)
    run = jax.grad(loss, argnums=(0, 1), has_aux=True) if differentiate else loss
    traced = jax.jit(run).trace(*inputs())
    assert str(traced.jaxpr).count(f"f32[7,{ROWS}] = exp ") == 1
    compiled = traced.lower().compile().as_text()
    assert f"[{TOKENS},{ROWS}]" not in compiled and f"[{ROWS},{TOKENS}]" not in compiled


def test_caller_mistakes():
    hidden, table, targets = map(jnp.asarray, inputs())
    with pytest.raises(ValueError, match=r"num_items=64 rows, got table.shape=\(64, 8\)"):
        losses.full_cross_entropy(hidden, table, targets, num_items=ROWS)
    run = functools.partial(losses.full_cross_entropy, hidden, table, targets, num_items=NUM_ITEMS)
    with pytest.raises(ValueError, match="chunk=0"):
        run(chunk=0)
    with pytest.raises(ValueError, match="label_smoothing=1.0"):
        run(label_smoothing=1.0)
