"""Measures what bounded memory costs: scores from a state that forgets against the whole model's.

The users of the test targets with long histories are followed event by event, through states that
keep at most so many events. At the end each user's scores are compared with those of the whole
model on the last `max_length` events: the error is the norm of the difference over the norm of the
scores, each less its mean over the items, which ranks nothing. Beside it stands a state that was
started anew from the last events: as many, and exact, but without what earlier ones left behind.
"""

import argparse
import pathlib

import numpy as np
from flax import nnx

from blossom_jax import trained_model
from blossom_jax.data import Interactions, Split
from blossom_jax.errors import UserError
from blossom_jax.incremental_recommender import IncrementalRecommender
from experiments import _cli, _setup, _workdir
from experiments.benchmark import measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    add = parser.add_argument
    measure.add_arguments(parser)
    add("--json", metavar="FILE", type=_cli.writable, help="also write the lines of JSON here")
    add("--workdir", required=True, metavar="DIR", type=pathlib.Path, help="of a run, or an export")
    add("--bounds", type=measure.positives, help="events kept; by default max_length and less")
    add("--events", type=measure.positive, help="followed; by default 1.5 times max_length")
    add("--users", type=measure.positive, default=64, help="followed at most")
    add("--top-k", type=measure.positive, default=10, help="items compared")


def run(arguments: argparse.Namespace) -> None:
    """Measures every bound, and prints a table."""
    config = _workdir.read_config(arguments.workdir)
    model = trained_model.load(arguments.workdir)
    longest = model.model_config.max_length
    events = arguments.events or longest * 3 // 2
    histories = long_histories(*_setup.load_data(config), events)[: arguments.users]
    if not histories:
        raise UserError(f"no user has {events} events before the target; lower --events")
    merged = nnx.merge(model.graphdef, model.params)
    whole = IncrementalRecommender(merged)
    want = np.asarray(whole.scores(whole.start_many(histories)))
    report = measure.Report("bounded", arguments.json, arguments.commit)
    for bound in arguments.bounds or (longest, longest // 2, longest // 4):
        recommender = IncrementalRecommender(merged, max_events=bound)
        state = recommender.start_many([history[:0] for history in histories])
        for items in np.stack(histories, axis=1):
            state, slid = recommender.step_many(state, items)
        anew = recommender.scores(recommender.start_many(histories))
        for name, got in {"forgetting": slid, "started anew": anew}.items():
            report.add(
                dataset=config.data.name,
                state=name,
                max_events=bound,
                max_length=longest,
                events=events,
                users=len(histories),
                bytes_per_user=state.num_bytes / len(histories),
                **compare(np.asarray(got), want, arguments.top_k),
            )
    _print(report.records, arguments.top_k)


def long_histories(interactions: Interactions, split: Split, events: int) -> list[np.ndarray]:
    """Returns the last events before each test target, of users who have as many."""
    ends = split.test.target
    begins = interactions.offsets[split.test.users]
    return [interactions.items[end - events : end] for end in ends[ends - begins >= events]]


def compare(got: np.ndarray, want: np.ndarray, top_k: int) -> dict[str, float]:
    """Measures how far scores [users, items] are from those of the whole model.

    Returns:
      Mean and largest error over the users, and the mean share of the top k that is the same.
    """
    got, want = got[:, 1:], want[:, 1:]  # item 0 is padding
    centred = [scores - scores.mean(1, keepdims=True) for scores in (got, want)]
    error = np.linalg.norm(centred[0] - centred[1], axis=1) / np.linalg.norm(centred[1], axis=1)
    best = [np.argsort(-scores, axis=1)[:, :top_k] for scores in (got, want)]
    shared = [np.isin(a, b).mean() for a, b in zip(*best, strict=True)]
    return {
        "mean_error": float(error.mean()),
        "largest_error": float(error.max()),
        "same_top_k": float(np.mean(shared)),
    }


def _print(records: list[dict], top_k: int) -> None:
    rows = (
        (
            record["state"],
            f"{record['max_events']:,}",
            f"{record['bytes_per_user']:,.0f}",
            f"{record['mean_error']:.4f}",
            f"{record['largest_error']:.4f}",
            f"{record['same_top_k']:.3f}",
        )
        for record in records
    )
    header = ("state", "events kept", "bytes", "mean error", "largest", f"same top {top_k}")
    measure.print_table(header, rows)
