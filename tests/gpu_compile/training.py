"""The whole training step of a small model, built as `experiments.train` builds it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_NUM_ITEMS = 1000


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One step on one row of one history, in bf16, by a layer of 8 heads of 16.

    Attributes:
      implementation: of the attention ops.
      selection_gradient: "none" or "straight_through".
      length: tokens in the row.
    """

    implementation: str = "triton"
    selection_gradient: str = "none"
    length: int = 4096

    def __str__(self) -> str:
        return f"train_step-{self.implementation}-{self.selection_gradient}-length{self.length}"

    def build(self, device: Any) -> tuple[Callable, tuple]:
        """See `Program`."""
        # Not above: kernels compile without flax and without these packages too.
        from blossom_jax import sharding, train_step
        from configs import common
        from experiments import _setup

        config = common.get_config()
        config.model.update(
            hidden_size=128,
            num_heads=8,
            num_layers=1,
            dtype="bfloat16",
            max_length=self.length,
            implementation=self.implementation,
            selection_gradient=self.selection_gradient,
        )
        mesh = sharding.make_mesh(1, devices=[device])
        make_model = _setup.model_maker(config, _NUM_ITEMS)
        optimizer = _setup.make_optimizer(config, num_steps=10_000)
        graphdef, _ = train_step.abstract_params(make_model, mesh)
        state = train_step.abstract_state(make_model, optimizer, mesh)
        step = train_step.make_train_step(
            graphdef,
            optimizer,
            mesh,
            state,
            num_items=_NUM_ITEMS,
            loss_chunk=config.train.loss_chunk,
        )
        row = jax.ShapeDtypeStruct(
            (1, self.length), jnp.int32, sharding=sharding.batch_sharding(mesh)
        )
        seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
        return step, (state, {"item_ids": row, "targets": row, "positions": row}, seed)
