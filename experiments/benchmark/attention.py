"""Times Blossom attention against dense attention, forward and backward, at several lengths.

Both run on the same random queries, keys and values, one history to a row. Temporary bytes are
those that the compiled program asks for besides its inputs and outputs. What would take more than
half of the memory is compiled, so that its bytes are known, and not run.

Not measured here are the layers around the attention: projections, and the compression of keys.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from blossom_jax import memory
from blossom_jax.config import ModelConfig
from blossom_jax.errors import UserError
from experiments.benchmark import measure, plot
from pallas_kernels import blossom_attention

MEASURED = ("forward", "forward_backward")
IMPLEMENTATIONS = ("xla", "reference")
PEERS = {"dense_xla": functools.partial(jax.nn.dot_product_attention, implementation="xla")}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shape of one call, in the letters of `pallas_kernels`."""

    rows: int
    length: int
    heads: int
    kv_heads: int
    head_size: int
    dtype: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    add("--lengths", type=_integers, default=(1024, 4096, 16384, 65536), help="tokens in a row")
    add("--rows", type=_integers, default=(1,), help="rows, one number or one for each length")
    add("--heads", type=measure.positive, default=8, help="query heads")
    add("--kv-heads", type=measure.positive, default=2, help="key/value heads")
    add("--head-size", type=measure.positive, default=16)
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--implementations", type=_names(IMPLEMENTATIONS), default=("xla",), help="of Blossom")
    add("--peers", type=_names(PEERS), default=tuple(PEERS), help="what it is compared with")
    add("--plot", metavar="FILE", help="draw seconds and bytes against length (.svg, .png, .pdf)")


def run(arguments: argparse.Namespace) -> None:
    """Measures everything, then prints a table and draws a plot."""
    contenders = {f"blossom_{name}": _blossom(name) for name in arguments.implementations}
    contenders |= {name: _dense(PEERS[name]) for name in arguments.peers}
    sizes = _sizes(arguments)
    report = measure.Report("attention", arguments.json)
    for each in sizes:
        compare(contenders, each, arguments.rounds, report)
    _print(report.records)
    if arguments.plot:
        plot.draw(report.records, arguments.plot)


def _sizes(arguments: argparse.Namespace) -> list[Sizes]:
    lengths, rows, heads = arguments.lengths, arguments.rows, arguments.heads
    if len(rows) not in (1, len(lengths)):
        raise UserError(f"--rows needs one number, or one for each of {lengths=}: {rows=}")
    if heads % arguments.kv_heads:
        raise UserError(f"--kv-heads={arguments.kv_heads} must divide --heads={heads}")
    rest = (heads, arguments.kv_heads, arguments.head_size, arguments.dtype)
    rows *= len(lengths) // len(rows)
    return [Sizes(r, length, *rest) for r, length in zip(rows, lengths, strict=True)]


# A contender makes, for some sizes, a function of positions and arrays, and these arguments.
Contender = Callable[[Sizes], tuple[Callable[..., Array], tuple[Array, ...]]]


def compare(
    contenders: dict[str, Contender], sizes: Sizes, rounds: int, report: measure.Report
) -> None:
    """Measures all contenders at one size, and reports each with its ratios.

    `seconds_ratio` and `temporary_bytes_ratio` are to the first contender at the same size;
    `temporary_bytes_growth` is to the same contender at the size that was measured first.

    Args:
      contenders: By name.
      sizes: Of the call.
      rounds: As in `measure.medians`.
      report: Where measurements are added.
    """
    limit = memory.available_bytes(jax.local_devices()) // 2
    for measured in MEASURED:
        programs = {name: _compile(make, sizes, measured) for name, make in contenders.items()}
        fitting = {
            name: functools.partial(compiled, *inputs)
            for name, (compiled, inputs) in programs.items()
            if memory.program_bytes(compiled) <= limit
        }
        seconds = measure.medians(fitting, rounds)
        size = {
            name: compiled.memory_analysis().temp_size_in_bytes
            for name, (compiled, _) in programs.items()
        }
        first = next(iter(contenders))
        for name in contenders:
            before = report.find(attention=name, measured=measured)
            report.add(
                attention=name,
                measured=measured,
                **dataclasses.asdict(sizes),
                seconds=seconds.get(name),
                seconds_ratio=_ratio(seconds.get(name), seconds.get(first)),
                temporary_bytes=size[name],
                temporary_bytes_ratio=_ratio(size[name], size[first]),
                temporary_bytes_growth=_ratio(
                    size[name], before["temporary_bytes"] if before else size[name]
                ),
            )


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _compile(make: Contender, sizes: Sizes, measured: str):
    attend, inputs = make(sizes)
    if measured == "forward":
        return jax.jit(attend).lower(*inputs).compile(), inputs

    def loss(cotangent, positions, *inputs):
        return jnp.sum(attend(positions, *inputs) * cotangent, dtype=jnp.float32)

    inputs = (_normal(sizes, 3, sizes.heads), *inputs)
    gradients = jax.value_and_grad(loss, argnums=tuple(range(2, len(inputs))))
    return jax.jit(gradients).lower(*inputs).compile(), inputs


def _normal(sizes: Sizes, seed: int, heads: int) -> Array:
    shape = (sizes.rows, sizes.length, heads, sizes.head_size)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), sizes.dtype)


def _inputs(sizes: Sizes) -> tuple[Array, Array, Array, Array]:
    """Returns positions, q, k, v."""
    positions = jnp.tile(jnp.arange(sizes.length, dtype=jnp.int32), (sizes.rows, 1))
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    q, k, v = (_normal(sizes, seed, h) for seed, h in enumerate(heads))
    return positions, q, k, v


def _dense(attention: Callable[..., Array]) -> Contender:
    def attend(positions, q, k, v):
        return attention(q, k, v, is_causal=True)

    return lambda sizes: (attend, _inputs(sizes))


def _blossom(implementation: str) -> Contender:
    model = ModelConfig()
    block = model.selection_block_size

    def attend(positions, q, k, v, summary_keys, gate):
        return blossom_attention(
            q,
            k,
            v,
            summary_keys,
            gate,
            positions,
            block_size=block,
            num_selected=model.num_selected_blocks,
            window=model.window,
            implementation=implementation,
        )

    def make(sizes: Sizes):
        positions, q, k, v = _inputs(sizes)
        # The mean of a block stands in for what the compressor learns.
        slots = -(-sizes.length // block)
        whole = jnp.pad(k, ((0, 0), (0, slots * block - sizes.length), (0, 0), (0, 0)))
        summary_keys = whole.reshape(sizes.rows, slots, block, *k.shape[2:]).mean(2)
        gate = jnp.full((*q.shape[:3], 2), 0.5, q.dtype)
        return attend, (positions, q, k, v, summary_keys, gate)

    return make


def _print(records: list[dict]) -> None:
    def row(record):
        seconds, ratio = record["seconds"], record["seconds_ratio"]
        return (
            record["attention"],
            record["measured"].replace("_", " + "),
            f"{record['rows']} x {record['length']:,}",
            f"{seconds:.4f}" if seconds else "too large",
            f"{ratio:.1f}x" if ratio else "",
            f"{record['temporary_bytes'] / 2**20:,.1f}",
            f"{record['temporary_bytes_ratio']:.1f}x" if record["temporary_bytes_ratio"] else "",
        )

    header = ("attention", "measured", "rows x length", "seconds", "", "temporary MiB", "")
    measure.print_table(header, map(row, records))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(measure.positive(word) for word in text.split(","))


def _names(known) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(word for word in text.split(",") if word)
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(known)}")
        return names

    return read
