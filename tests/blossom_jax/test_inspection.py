"""What the report shows of a model: gates and selected blocks, where it has them."""

import jax.numpy as jnp
import pytest
from flax import nnx
from tiny_model import SIZES

from blossom_jax.inspection import decisions
from blossom_jax.model import BlossomRec, ModelConfig

ITEMS = jnp.arange(1, 9)[None]
POSITIONS = jnp.arange(8)[None]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, "gates slots"),
        ({"attention": "stis"}, ""),
        ({"attention": "ltis", "selector": "recent"}, "slots"),
        ({"selector": "summary4"}, "gates"),
        ({"gate": "sum"}, "gates slots"),
        ({"remat": "block"}, "gates slots"),
        ({"block": "hstu"}, ""),
        ({"attention": "dense"}, ""),
    ],
    ids=str,
)
def test_decisions_are_those_that_are_taken(changes, names):
    model = BlossomRec(ModelConfig(**SIZES | changes), 40, rngs=nnx.Rngs(0))
    (decided,) = decisions(model, ITEMS, POSITIONS)
    assert sorted(decided) == names.split()
    assert type(model.layers[0].attention).__name__ != "_Recorder"
    if "gates" in names:
        assert decided["gates"].shape == (1, 8, 4, 2)
    if "slots" in names:
        assert decided["slots"].shape == (1, 8, 2, 2)
        assert jnp.all(decided["slots"] < 4)
