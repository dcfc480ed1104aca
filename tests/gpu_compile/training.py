"""Whole training steps, built as `experiments.train` builds them, and the loss alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gpu_compile.case import DTYPES

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
        from configs import common

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
        return _build(config, (1, self.length), _NUM_ITEMS, device)


@dataclasses.dataclass(frozen=True)
class DefaultStep:
    """One step of the model that configs/common.py describes, in f32, by the Triton kernels.

    Attributes:
      remat: "none" or "block".
      rows: of a batch.
      length: tokens in a row.
      num_items: size of the catalogue.
    """

    remat: str = "none"
    rows: int = 64
    length: int = 16384
    num_items: int = 10_000

    def __str__(self) -> str:
        return f"default_step-{self.remat}-{self.rows}x{self.length}-items{self.num_items}"

    def build(self, device: Any) -> tuple[Callable, tuple]:
        """See `Program`."""
        from configs import common

        config = common.get_config()
        config.model.update(max_length=self.length, implementation="triton", remat=self.remat)
        return _build(config, (self.rows, self.length), self.num_items, device)


def _build(config: Any, shape: tuple[int, int], num_items: int, device: Any):
    from blossom_jax import losses, sharding, train_step
    from experiments import _setup

    mesh = sharding.make_mesh(1, devices=[device])
    make_model = _setup.model_maker(config, num_items)
    optimizer = _setup.make_optimizer(config, num_steps=10_000)
    graphdef, _ = train_step.abstract_params(make_model, mesh)
    state = train_step.abstract_state(make_model, optimizer, mesh)
    loss = losses.make_loss(_setup.loss_config(config), num_items=num_items, mesh=mesh)
    step = train_step.make_train_step(graphdef, optimizer, mesh, state, loss)
    row = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding.batch_sharding(mesh))
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
    return step, (state, {"item_ids": row, "targets": row, "positions": row}, seed)


@dataclasses.dataclass(frozen=True)
class LossGradient:
    """The cross-entropy over a whole catalogue, with its gradients.

    Attributes:
      dtype: of the output of the model.
      items: size of the catalogue.
      tokens: that have a target.
      hidden_size: M.
    """

    dtype: str = "bfloat16"
    items: int = 1_000_000
    tokens: int = 65_536
    hidden_size: int = 128

    def __str__(self) -> str:
        dtype = DTYPES[self.dtype]
        return f"loss-{dtype}-items{self.items}-tokens{self.tokens}-M{self.hidden_size}"

    def build(self, device: Any) -> tuple[Callable, tuple]:
        """See `Program`."""
        from blossom_jax import losses, sharding

        rows = -(-(self.items + 1) // 128) * 128  # as in the model
        mesh = sharding.make_mesh(devices=[device])

        def loss_and_gradients(hidden, table, targets):
            loss = losses.make_loss(losses.LossConfig(), num_items=self.items, mesh=mesh)

            def total(hidden, table):
                return loss(hidden, table, targets, None)[0]

            return jax.value_and_grad(total, argnums=(0, 1))(hidden, table)

        return loss_and_gradients, (
            jax.ShapeDtypeStruct((self.tokens, self.hidden_size), self.dtype),
            jax.ShapeDtypeStruct((rows, self.hidden_size), jnp.float32),
            jax.ShapeDtypeStruct((self.tokens,), jnp.int32),
        )
