"""Continued training: known items keep rows and moments wherever they stand, new ones are drawn."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import flags, make_log, make_run

from blossom_jax import catalogue, sharding
from blossom_jax.catalogue import Catalogue
from blossom_jax.continued_training import continued_state, match_items
from blossom_jax.data import interactions
from blossom_jax.errors import UserError
from blossom_jax.train_step import abstract_state, init_state
from experiments import _continue, _setup, _workdir, train

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.1)))


def state(rows, value, updates, optimizer=OPTIMIZER):
    """Returns a state after some updates; row k of the table holds value + k."""
    table = value + jnp.arange(rows, dtype=jnp.float32)[:, None] * jnp.ones(2)
    params = {"item_embedding": {"embedding": table}, "bias": jnp.full(3, value)}
    opt_state = optimizer.init(params)
    for _ in range(updates):
        _, opt_state = optimizer.update(params, opt_state, params)
    return {"params": params, "opt_state": opt_state, "step": jnp.int32(updates)}


def part(opt_state, kind):
    is_kind = lambda x: isinstance(x, kind)  # noqa: E731
    (found,) = filter(is_kind, jax.tree.leaves(opt_state, is_leaf=is_kind))
    return found


def test_items_are_matched_by_raw_id():
    old = Catalogue("tiny", ["a", "b", "c"], np.ones(3, np.int64))
    assert match_items(old, ["c", "x", "a"]).tolist() == [0, 3, -1, 1]


def test_rows_and_moments_follow_their_items_and_the_schedule_begins_anew():
    accumulating = optax.MultiSteps(OPTIMIZER, 2).gradient_transformation()
    initial, old = state(6, 100.0, 0, accumulating), state(4, 0.0, 5)
    adam = part(old["opt_state"], optax.ScaleByAdamState)
    carried = continued_state(initial, old, np.array([0, 3, -1, 1]))
    table = carried["params"]["item_embedding"]["embedding"][:, 0]
    assert table.tolist() == [0.0, 3.0, 102.0, 1.0, 104.0, 105.0]
    assert carried["params"]["bias"].tolist() == [0.0] * 3
    carried_adam = part(carried["opt_state"], optax.ScaleByAdamState)
    for name in ("mu", "nu"):
        moments = getattr(carried_adam, name)["item_embedding"]["embedding"]
        old_moments = getattr(adam, name)["item_embedding"]["embedding"]
        np.testing.assert_array_equal(
            moments[jnp.array([0, 1, 3])], old_moments[jnp.array([0, 3, 1])]
        )
        np.testing.assert_array_equal(moments[jnp.array([2, 4, 5])], 0)
    assert int(adam.count) == int(carried_adam.count) == 5
    assert int(part(carried["opt_state"], optax.ScaleByScheduleState).count) == 0
    assert int(carried["step"]) == 0


def test_another_model_is_refused_with_both_shapes():
    old = state(4, 0.0, 0)
    old["params"]["bias"] = jnp.zeros(2)
    with pytest.raises(UserError, match=r"its bias is \(2,\), that of this config \(3,\)"):
        continued_state(state(4, 0.0, 0), old, np.arange(4))


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Returns the folder of a run on the items i0 to i29, and its state."""
    root = tmp_path_factory.mktemp("old")
    return root / "run", make_run(make_log(root / "log"), root / "run")


@pytest.fixture(scope="module")
def grown_log(tmp_path_factory):
    """Returns a log of the items i5 to i39."""
    return make_log(tmp_path_factory.mktemp("grown") / "log", num_items=35, first=5)


def stub_plan(old, log, **model):
    """Returns as much of a plan as is needed to start, without compiling anything."""
    config = _workdir.read_config(old).unlock()
    config.train.init_from = str(old)
    config.model.update(model)
    return SimpleNamespace(
        config=config, interactions=interactions.load(log), mesh=sharding.make_mesh()
    )


def test_a_grown_catalogue_is_refused_unless_asked_for(old, grown_log):
    with pytest.raises(UserError) as error:
        _continue.from_run(stub_plan(old[0], grown_log), {})
    assert "the catalogue has grown from 30 to 35 items since the checkpoint" in str(error.value)
    assert "10 of them new; --config.model.grow_items=true keeps" in str(error.value)


def test_a_catalogue_without_a_known_item_is_refused(old, tmp_path):
    plan = stub_plan(old[0], make_log(tmp_path / "log", first=100), grow_items=True)
    with pytest.raises(UserError, match="none of the 30 items .* first is 'i.*' here, 'i.*' there"):
        _continue.from_run(plan, {})


def initial_state(plan):
    make_model = _setup.model_maker(plan.config, plan.interactions.num_items)
    optimizer = _setup.make_optimizer(plan.config, 4)
    return init_state(make_model, optimizer, abstract_state(make_model, optimizer, plan.mesh))


def test_another_width_is_refused(old, tmp_path):
    plan = stub_plan(old[0], make_log(tmp_path / "log"), hidden_size=32)
    with pytest.raises(UserError, match="the model of train.init_from is another one"):
        _continue.from_run(plan, initial_state(plan))


def test_a_run_goes_on_with_new_items(old, grown_log, capsys):
    plan = stub_plan(old[0], grown_log, grow_items=True)
    drawn = table_of(initial_state(plan))
    table = table_of(_continue.from_run(plan, initial_state(plan)))
    said = capsys.readouterr().out
    assert f"starting from step 4 of {old[0]}: 25 items keep their rows, 10 are new, 5 are" in said
    before = catalogue.load(old[0]).numbers
    for number, raw in enumerate(plan.interactions.item_ids, start=1):
        expected = table_of(old[1])[before[raw]] if raw in before else drawn[number]
        np.testing.assert_array_equal(table[number], expected)


def table_of(state):
    return np.asarray(state["params"]["item_embedding"]["embedding"][...])


def test_growing_without_a_run_to_grow_is_refused(grown_log, tmp_path):
    with pytest.raises(UserError, match="model.grow_items=true needs train.init_from=DIR"):
        train.main(flags(grown_log, tmp_path / "new", model__grow_items=True))
    assert not (tmp_path / "new").exists()
