"""Times the whole training step of Blossom and of its dense twin, on long rows made on the spot.

Each row is one history of random items. Dense attention is told so, which lets cuDNN serve it; on a
GPU cuDNN is asked for by name, so that nothing slower stands in for it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from blossom_jax import memory, optimizer, sharding, train_step
from blossom_jax.compression import is_compressor_parameter
from blossom_jax.losses import Loss, LossConfig, make_loss
from blossom_jax.model import BlossomRec, ModelConfig
from experiments.benchmark import measure

Batch = dict[str, np.ndarray]


class Step(NamedTuple):
    """A training step on one batch.

    Attributes:
      call: Takes a step from where the last one ended; returns its metrics.
      program: What XLA compiled.
    """

    call: Callable[[], dict]
    program: jax.stages.Compiled


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained on.

    Attributes:
      length: Events of each history, one to a row.
      tokens: Events of a batch, a multiple of `length`.
      num_items: Size of the catalogue.
      heads: Query heads; the hidden size is `heads * head_size`.
      kv_heads: Key/value heads.
      head_size: Width of a head.
      dtype: Of activations.
    """

    length: int
    tokens: int
    num_items: int
    heads: int
    kv_heads: int
    head_size: int
    dtype: str

    def batch(self) -> Batch:
        """Returns its `random_batch`."""
        return random_batch(self.length, self.tokens, self.num_items)

    def model(self, attention: str, implementation: str) -> ModelConfig:
        """Returns the config of one contender, whose other values are the defaults."""
        hidden = self.heads * self.head_size
        return ModelConfig(
            attention=attention,
            implementation=implementation,
            hidden_size=hidden,
            inner_size=4 * hidden,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            max_length=self.length,
            dtype=self.dtype,
        )


def random_batch(length: int, tokens: int, num_items: int) -> Batch:
    """Returns rows of random items, each to be predicted from those before.

    Args:
      length: As in `Workload`.
      tokens: Likewise.
      num_items: Likewise.
    """
    shape = tokens // length, length + 1
    items = np.random.default_rng(0).integers(1, num_items + 1, shape, np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (shape[0], 1))
    return {"item_ids": items[:, :-1], "targets": items[:, 1:], "positions": positions}


def contenders() -> dict[str, tuple[str, str]]:
    """Returns (attention, implementation) by name, for the device at hand."""
    library = "xla" if jax.default_backend() == "cpu" else "cudnn"
    return {
        "blossom_auto": ("blossom", ""),
        f"dense_{library}": ("dense", library),
        "blossom_xla": ("blossom", "xla"),
    }


def compare(
    chosen: Mapping[str, tuple[str, str]],
    work: Workload,
    rounds: int,
    report: measure.Report,
    *,
    make: Callable[..., Step] | None = None,
    **same: Any,
) -> None:
    """Times a step of each contender on the same batch, and reports each.

    `speedup` and `memory_ratio` say by other contender how many times as much time and memory that
    one takes. `program_bytes` is all that a step holds at once by the compiler's plan: parameters,
    optimizer state, batch and temporaries.

    Args:
      chosen: (attention, implementation) by name.
      work: What is trained on.
      rounds: As in `measure.medians`.
      report: Where measurements are added.
      make: What prepares a step, `prepare` by default.
      **same: What all records bear besides.
    """
    steps: dict[str, Step] = {}
    failed: dict[str, str] = {}
    for name, (attention, implementation) in chosen.items():
        try:
            steps[name] = (make or prepare)(work, attention, implementation)
        except Exception as error:  # the others go on
            failed[name] = measure.reason(error)
    calls = {name: step.call for name, step in steps.items()}
    seconds = measure.medians(calls, rounds, failed)
    held = {name: memory.program_bytes(step.program) for name, step in steps.items()}
    for name in chosen:
        mine = seconds.get(name)
        report.add(
            model=name,
            **same,
            **dataclasses.asdict(work),
            seconds=mine,
            tokens_per_second=work.tokens / mine if mine else None,
            speedup=measure.times_of_others(name, seconds, chosen),
            program_bytes=held.get(name),
            temporary_bytes=_temporary_bytes(steps.get(name)),
            memory_ratio=measure.times_of_others(name, held, chosen),
            error=failed.get(name),
        )


def _temporary_bytes(step: Step | None) -> int | None:
    return step.program.memory_analysis().temp_size_in_bytes if step else None


def prepare(
    work: Workload, attention: str, implementation: str, mesh: jax.sharding.Mesh | None = None
) -> Step:
    """Prepares a step with the default optimizer.

    Args:
      work: What is trained on.
      attention: As in `ModelConfig`.
      implementation: Likewise.
      mesh: As in `make_step`.
    """
    config = work.model(attention, implementation)

    def make_model():
        return BlossomRec(config, work.num_items, rngs=nnx.Rngs(0))

    loss = make_loss(LossConfig(), num_items=work.num_items, mesh=mesh)
    start = make_step(make_model, default_optimizer(), loss, packed=False, mesh=mesh)
    return start(work.batch())


def default_optimizer() -> optax.GradientTransformation:
    """Returns what the defaults of configs/common.py make of AdamW."""
    return optimizer.make_optimizer(
        learning_rate=1e-3,
        warmup_steps=100,
        schedule="constant",
        total_steps=10_000,
        weight_decay=0.01,
        b1=0.9,
        b2=0.98,
        clip_norm=1.0,
        accumulate_steps=1,
        frozen=is_compressor_parameter,
    )


def make_step(
    make_model: Callable[[], BlossomRec],
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    seed: int = 0,
    packed: bool = True,
    lazy_items: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[Batch], Step]:
    """Prepares the whole training step.

    Args:
      make_model: Builds the model with its initial parameters.
      optimizer: What updates them.
      loss: From `losses.make_loss`, for the same mesh.
      seed: Of dropout.
      packed: Whether a row may hold several histories.
      lazy_items: As in `make_train_step`.
      mesh: Devices that share it; the first one alone by default.

    Returns:
      What makes of a batch a step that starts from the initial parameters.
    """
    mesh = mesh or sharding.make_mesh(1, devices=jax.local_devices()[:1])
    graphdef, _ = train_step.abstract_params(make_model, mesh)
    like = train_step.abstract_state(make_model, optimizer, mesh)
    step = train_step.make_train_step(
        graphdef, optimizer, mesh, like, loss, packed=packed, lazy_items=lazy_items
    )
    initial = train_step.init_state(make_model, optimizer, like)
    seed_everywhere = sharding.put_whole(np.uint32(seed), sharding.replicated(mesh))
    return functools.partial(_start, step, initial, mesh, seed_everywhere)


def _start(step, initial, mesh, seed, batch: Batch) -> Step:
    state = jax.tree.map(jnp.copy, initial)  # the step consumes it
    on_device = sharding.put_batch(batch, mesh)
    program = step.lower(state, on_device, seed).compile()

    def call():
        nonlocal state
        state, metrics = program(state, on_device, seed)
        return metrics

    return Step(call, program)


def print_table(records: list[dict]) -> None:
    """Prints the measurements, with a column of speedups for each contender, then the failures."""
    measured: list[dict[str, Any]] = [record for record in records if record["seconds"]]
    names = list(dict.fromkeys(record["model"] for record in measured))
    rows = (
        (
            record["model"],
            f"{record['tokens'] // record['length']} x {record['length']:,}",
            f"{record['seconds'] * 1e3:,.2f}",
            f"{record['tokens_per_second']:,.0f}",
            *(measure.shown_ratio(record["speedup"].get(name)) for name in names),
            f"{record['program_bytes'] / 2**20:,.0f}",
        )
        for record in measured
    )
    versus = (f"vs {name}" for name in names)
    measure.print_table(("model", "rows x length", "ms", "tokens/s", *versus, "MiB"), rows)
    measure.print_failures("model", records)
