"""Times the same training step on one device and on several, and checks that they agree.

The batch is the same on every mesh, so that a perfect speed-up is the number of devices. A mesh
of `data` x `model` splits its rows over all of them, and the item table over `model`.
"""

import argparse
import dataclasses
import math

import jax

from blossom_jax import memory, sharding
from blossom_jax.errors import UserError
from experiments import _cli
from experiments.benchmark import measure, sizes, training

# Largest relative difference of the first step's loss and gradients' norm to those of one device.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    measure.add_arguments(parser)
    add("--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here")
    add("--devices", type=measure.positives, help="numbers of devices; 1 and all by default")
    add("--tokens", type=measure.positive, default=2**16, help="of the batch; 65,536 by default")
    add("--length", type=measure.positive, default=512, help="of each history; 512 by default")
    add("--items", type=measure.positive, default=100_000, help="catalogue; 100,000 by default")
    sizes.add_heads(parser, dtype="bfloat16")
    add("--attention", default="blossom", help="as model.attention; blossom by default")
    add("--implementation", default="", help="of attention; the fastest here by default")


def run(arguments: argparse.Namespace) -> None:
    """Measures every mesh and prints a table.

    Raises:
      UserError: More devices than there are, or rows that they cannot share.
    """
    counts = sorted({1, *(arguments.devices or (jax.device_count(),))})
    if counts[-1] > jax.device_count():
        raise UserError(f"--devices={counts[-1]}: there are {jax.device_count()}")
    rows = arguments.tokens // arguments.length
    if arguments.tokens % arguments.length or rows % math.lcm(*counts):
        raise UserError(
            f"--tokens={arguments.tokens} must make rows of --length={arguments.length}, as many "
            f"as are a multiple of --devices={','.join(map(str, counts))}"
        )
    work = training.Workload(
        length=arguments.length,
        tokens=arguments.tokens,
        num_items=arguments.items,
        heads=arguments.heads,
        kv_heads=arguments.kv_heads,
        head_size=arguments.head_size,
        dtype=arguments.dtype,
    )
    report = measure.Report("devices", arguments.json, arguments.commit)
    chosen = arguments.attention, arguments.implementation
    compare(_shapes(counts), work, chosen, arguments.rounds, report)
    _print(report.records)


def _shapes(counts: list[int]) -> list[tuple[int, int]]:
    """Returns meshes with each number of devices: only rows split, and the table over all."""
    return [shape for n in counts for shape in dict.fromkeys([(n, 1), (1, n)])]


def compare(
    shapes: list[tuple[int, int]],
    work: training.Workload,
    chosen: tuple[str, str],
    rounds: int,
    report: measure.Report,
) -> None:
    """Times a step on each mesh, and reports each with its speed-up over the first.

    Args:
      shapes: (data, model) of each mesh, that of one device first.
      work: What is trained on.
      chosen: (attention, implementation), as in `ModelConfig`.
      rounds: As in `measure.medians`.
      report: Where measurements are added.

    Raises:
      ArithmeticError: A mesh whose loss or gradients are not those of the first.
    """
    steps = {}
    for shape in shapes:
        mesh = sharding.make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
        steps[shape] = training.prepare(work, *chosen, mesh)
    metrics = {shape: _first_metrics(step) for shape, step in steps.items()}
    for shape, found in metrics.items():
        _check_equal(shape, found, metrics[shapes[0]], TOLERANCE[work.dtype])
    seconds = measure.medians({str(shape): step.call for shape, step in steps.items()}, rounds)
    for shape, step in steps.items():
        mine = seconds[str(shape)]
        report.add(
            mesh=f"{shape[0]}x{shape[1]}",
            devices=math.prod(shape),
            **dataclasses.asdict(work),
            seconds=mine,
            tokens_per_second=work.tokens / mine,
            speedup=seconds[str(shapes[0])] / mine,
            program_bytes=memory.program_bytes(step.program),
            **metrics[shape],
        )


def _first_metrics(step: training.Step) -> dict[str, float]:
    found = {name: float(value) for name, value in step.call().items()}
    return {"loss": found["loss_sum"] / found["count"], "grad_norm": found["grad_norm"]}


def _check_equal(shape, found, wanted, tolerance) -> None:
    for name, value in found.items():
        if not abs(value - wanted[name]) <= tolerance * abs(wanted[name]):
            raise ArithmeticError(
                f"{name} of the first step is {value} on a mesh of {shape}, but {wanted[name]} on "
                f"one device; they may differ by {tolerance} of it"
            )


def _print(records: list[dict]) -> None:
    header = ("mesh", "ms", "tokens/s", "speed-up", "MiB a device", "first loss")
    rows = (
        (
            record["mesh"],
            f"{record['seconds'] * 1e3:,.2f}",
            f"{record['tokens_per_second']:,.0f}",
            measure.shown_ratio(record["speedup"]),
            f"{record['program_bytes'] / 2**20:,.0f}",
            f"{record['loss']:.6f}",
        )
        for record in records
    )
    measure.print_table(header, rows)
