"""States that must not be continued, and the store that forgets."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from blossom_jax import incremental
from blossom_jax.errors import UserError
from blossom_jax.incremental_recommender import IncrementalRecommender
from blossom_jax.model import BlossomRec, ModelConfig
from blossom_jax.user_states import UserState, UserStates, model_hash
from pallas_kernels import decode

CONFIG = ModelConfig(attention="stis", hidden_size=8, inner_size=8, num_layers=1, num_heads=2)


def make(seed=0, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return BlossomRec(config, 9, rngs=nnx.Rngs(seed))


def state(num_tokens=4):
    """A state of 16 bytes a token, and 12 more."""
    history = decode.History(jnp.zeros((1, 1, num_tokens, 4)), None)
    arrays = incremental.State(jnp.zeros(1, jnp.int32), jnp.zeros((1, 2)), (history,))
    return UserState(arrays, (0,), 50, "hash")


def test_the_hash_is_of_the_parameters_and_the_config():
    assert model_hash(make()) == model_hash(make())
    others = [make(seed=1), make(window=3), make(num_layers=2)]
    assert len({model_hash(model) for model in (make(), *others)}) == 4


def test_a_state_is_refused_by_what_did_not_make_it_and_when_used_up():
    recommender = IncrementalRecommender(make())
    first = recommender.start([1, 2])
    with pytest.raises(UserError, match="cannot be continued by model .* trained anew"):
        IncrementalRecommender(make(seed=1)).step(first, 3)
    with pytest.raises(UserError, match="keeps at most 50 events, and this recommender 20"):
        IncrementalRecommender(make(), max_events=20).step(first, 3)
    second, _ = recommender.step(first, 3)
    with pytest.raises(UserError, match="used up by an earlier step"):
        recommender.step(first, 3)
    for item in (0, 10):
        with pytest.raises(UserError, match=f"item {item} is unknown: this model's items are 1..9"):
            recommender.step(second, item)
    with pytest.raises(UserError, match="2 items for the 1 users"):
        recommender.step_many(second, [1, 2])
    assert second.num_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(second.arrays))
    with pytest.raises(UserError, match="a user without events has no scores"):
        recommender.scores(recommender.start([]))


def test_states_are_kept_continued_and_deleted():
    states, kept = UserStates(max_bytes=10**6), state()
    states["ann"] = kept
    assert kept.num_bytes == 76 and states.num_bytes == 76 and list(states) == ["ann"]
    assert states.pop("ann") is kept
    assert "ann" not in states and states.num_bytes == 0
    states["ann"], states["bob"] = state(), state(1)
    states["ann"] = state(1)  # takes the place of the other
    assert states.num_bytes == 2 * 28 and len(states) == 2
    del states["ann"]
    with pytest.raises(KeyError):
        states["ann"]


def test_the_least_recently_used_are_dropped_beyond_the_limit():
    states = UserStates(max_bytes=3 * 28)
    for user in "abc":
        states[user] = state(1)
    assert states["a"]
    states["d"] = state(1)
    assert list(states) == ["c", "a", "d"]
    with pytest.raises(UserError, match="a state of 92 bytes exceeds the limit of 84"):
        states["e"] = state(5)
    assert len(states) == 3
