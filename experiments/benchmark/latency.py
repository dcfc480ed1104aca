"""Times the recommendation after one more event of a user, against encoding the whole history.

An event's time is what passes from its item until its top k are there: a step of the incremental
state, the scores of the whole catalogue, and their top k. Users with short and with long histories
take turns, event by event, and so does the whole encoding of a history, in each round. Before the
clock runs, a copy of each state takes as many events, so that all is compiled; a state that
outgrows its arrays grows on the clock. CPU time is that of the process, which other work on the
machine hardly changes. The model is untrained, and has the paper's sizes.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from blossom_jax.errors import UserError
from blossom_jax.evaluate import last_scores
from blossom_jax.incremental_recommender import IncrementalRecommender
from blossom_jax.model import BlossomRec, ModelConfig
from experiments import _cli
from experiments.benchmark import measure

Seconds = tuple[float, float]  # on the clock, and of CPU time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    measure.add_arguments(parser)
    add("--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here")
    add("--histories", type=measure.positives, default=(1000, 64000), help="events at the start")
    add("--recompute", type=measure.positive, default=16384, help="events encoded at once")
    add("--items", type=measure.positives, default=(10**4, 10**5, 10**6), help="catalogues")
    add("--events", type=measure.positive, default=100, help="timed in each round")
    add("--top-k", type=measure.positive, default=10)


def run(arguments: argparse.Namespace) -> None:
    """Measures every catalogue, and prints a table."""
    if arguments.top_k > min(arguments.items):
        raise UserError(f"--top-k={arguments.top_k} exceeds a catalogue of {min(arguments.items)}")
    report = measure.Report("latency", arguments.json, arguments.commit)
    for num_items in arguments.items:
        compare(num_items, arguments, report)
    _print(report.records)


def compare(num_items: int, arguments: argparse.Namespace, report: measure.Report) -> None:
    """Times all histories on one catalogue, and reports each.

    `ratio_to_first` is of the medians, to the first history; `cpu_` is of CPU time.
    `cheaper_than_recompute` says how many times as long the whole encoding of `--recompute` events
    takes, scores and top k included.

    Args:
      num_items: Size of the catalogue.
      arguments: As `add_arguments` describes them.
      report: Where measurements are added.
    """
    rng = np.random.default_rng(0)
    timed = arguments.rounds * arguments.events
    longest = max(*arguments.histories, arguments.recompute) + timed
    config = ModelConfig(hidden_size=128, num_heads=8, num_kv_heads=2, max_length=longest)
    model = BlossomRec(config, num_items, rngs=nnx.Rngs(0))
    recommender = IncrementalRecommender(model)
    items = rng.integers(1, num_items + 1, longest, np.int32)
    top_k = jax.jit(lambda scores: jax.lax.top_k(scores[..., 1:], arguments.top_k))

    events = {n: _follow(recommender, items[: n + timed], n, top_k) for n in arguments.histories}
    recompute = _encode(model, items[: arguments.recompute], top_k)
    seconds, recomputed = _time(events, recompute, arguments.rounds, arguments.events)
    first, first_cpu = seconds[arguments.histories[0]][0]
    for length, ((middle, middle_cpu), (last, _)) in seconds.items():
        report.add(
            history=length,
            num_items=num_items,
            top_k=arguments.top_k,
            events=timed,
            p50_seconds=middle,
            p99_seconds=last,
            cpu_seconds=middle_cpu,
            ratio_to_first=middle / first,
            cpu_ratio_to_first=middle_cpu / first_cpu,
            recompute=arguments.recompute,
            recompute_seconds=recomputed[0],
            recompute_cpu_seconds=recomputed[1],
            cheaper_than_recompute=recomputed[0] / middle,
            cpu_cheaper_than_recompute=recomputed[1] / middle_cpu,
        )


def _follow(recommender: IncrementalRecommender, items, begun: int, top_k) -> Callable[[], Any]:
    """Returns what takes the next event after the first `begun`, all compiled."""
    state = recommender.start(items[:begun])
    copy = dataclasses.replace(state, arrays=jax.tree.map(jnp.copy, state.arrays))
    for item in items[begun:]:
        copy, scores = recommender.step(copy, item)
    jax.block_until_ready(top_k(scores))
    following = iter(items[begun:])

    def event():
        nonlocal state
        state, scores = recommender.step(state, next(following))
        return top_k(scores), state.arrays

    return event


def _encode(model: BlossomRec, items, top_k) -> Callable[[], Any]:
    """Returns what encodes a whole history as evaluation does, compiled."""
    graphdef, params = nnx.split(model, nnx.Param)
    scores = jax.jit(last_scores(graphdef))
    positions = np.arange(len(items), dtype=np.int32)
    batch = {"item_ids": items[None], "positions": positions[None], "last": positions[-1:]}

    def encode():
        return top_k(scores(params, batch))

    jax.block_until_ready(encode())
    return encode


def _time(events, recompute, rounds: int, number: int):
    """Times all in turn.

    Returns:
      Medians and 99th percentiles of an event by history, and medians of the whole encoding: each
      of seconds on the clock and of CPU time.
    """
    seconds: dict[int, list[Seconds]] = {length: [] for length in events}
    recomputed = []
    for _ in range(rounds):
        for _ in range(number):
            for length, event in events.items():
                seconds[length].append(measure.both_seconds(event))
        recomputed.append(measure.both_seconds(recompute))
    by_history = {
        n: np.percentile(times, (50, 99), axis=0).tolist() for n, times in seconds.items()
    }
    return by_history, np.median(recomputed, axis=0).tolist()


def _print(records: list[dict]) -> None:
    header = ["history", "items", "p50 ms", "p99 ms", "to first", "recompute ms", "cheaper"]
    header += ["CPU ms", "to first", "recompute ms", "cheaper"]
    rows = (
        (
            f"{record['history']:,}",
            f"{record['num_items']:,}",
            f"{record['p50_seconds'] * 1e3:,.2f}",
            f"{record['p99_seconds'] * 1e3:,.2f}",
            measure.shown_ratio(record["ratio_to_first"]),
            f"{record['recompute_seconds'] * 1e3:,.0f}",
            measure.shown_ratio(record["cheaper_than_recompute"]),
            f"{record['cpu_seconds'] * 1e3:,.2f}",
            measure.shown_ratio(record["cpu_ratio_to_first"]),
            f"{record['recompute_cpu_seconds'] * 1e3:,.0f}",
            measure.shown_ratio(record["cpu_cheaper_than_recompute"]),
        )
        for record in records
    )
    measure.print_table(header, rows)
