"""Shows what a log is like: its data card."""

from collections.abc import Iterable, Iterator

from blossom_jax.data.statistics import Statistics

_PERCENTILE_NAMES = {0: "min", 50: "median", 100: "max"}


def card(log: Statistics) -> str:
    """Returns what was counted in a log, with what follows from it where that is not plain."""
    return align(_lines(log))


def align(lines: Iterable[tuple[str, str]]) -> str:
    """Returns names and texts as lines, like those that `prepare_data` prints."""
    return "\n".join(f"{name:>24}: {text}" for name, text in lines)


def _lines(log: Statistics) -> Iterator[tuple[str, str]]:
    yield "density", f"{log['density']:.3%} of all pairs of a user and an item occur"
    yield "events of a user", _percentiles(log["length"])
    yield "before a test target", _percentiles(log["test_length"])
    if log["first_day"] is None:
        yield "time", "none; the order is the file's, and data.split=global_time is not possible"
    else:
        yield "time", f"the first event is of {log['first_day']}, the last of {log['last_day']}"
        yield (
            "ties in time",
            f"{log['tied_share']:.1%} of events come at the time of the user's event before; "
            "these keep the file's order",
        )
    yield (
        "repeats",
        f"{log['repeated_share']:.1%} of events are of an item the user had before, and "
        f"{log['repeated_target_share']:.1%} of test targets: misses in full/, not in full_keep/",
    )
    yield "unseen test targets", f"{log['unseen_target_share']:.1%} never occur in training"
    popular = ", ".join(
        f"{targets:.1%} among the top {items:.0%}"
        for items, targets in log["popular_target_share"].items()
    )
    yield "popular test targets", f"{popular} of items by events in training"
    yield (
        "worth of order",
        "what a trained model loses without it: "
        "python -m experiments.evaluate --workdir=RUN --shuffle",
    )


def _percentiles(lengths: dict[int, float]) -> str:
    return ", ".join(
        f"{_PERCENTILE_NAMES.get(percent, f'{percent}%')} {length:,.0f}"
        for percent, length in lengths.items()
    )
