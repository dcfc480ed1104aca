"""Recommends items for users that the model need not have seen, by their histories of raw ids.

    python -m experiments.recommend --workdir=runs/ml_1m --history=1193,661,914 --top-k=10
    python -m experiments.recommend --workdir=runs/ml_1m --input=users.jsonl --output=out.jsonl

The workdir is that of a run, or an export. A line of the input is {"user": .., "history": [id, ..]}
and one of the output {"user": .., "items": [{"id": .., "score": ..}, ..]}, in the same order, with
"unknown", the ids that were skipped, and "popular": true where no known item was left, so that
popular items are shown. A line that cannot be read is reported and left out; the exit code is then
1. Programs are kept on disk, in $JAX_COMPILATION_CACHE_DIR or else in BlossomRec's own cache.

A list of ids is given as id,id,id or as @FILE with one id a line.
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO

import tqdm

from blossom_jax.catalogue import describe_unknown
from blossom_jax.errors import UserError
from blossom_jax.recommender import Recommender
from experiments import _cli, _compile_cache, _titles, _user_lines
from experiments._user_lines import BadLine

_CHUNK = 4096  # users that are read, answered and written at once


def main(argv: Sequence[str]) -> int:
    """Answers one history, or a file of them; returns 1 if a line could not be read."""
    arguments = _parse(argv)
    titles = _titles.read_titles(arguments.titles) if arguments.titles else {}
    _compile_cache.enable()
    if arguments.history is not None:
        return recommend_one(arguments, titles)
    return recommend_all(arguments, titles)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--workdir", required=True, type=_cli.folder, metavar="DIR", help="of a run, or an export"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--history", metavar="IDS", help="of one user, in time order")
    source.add_argument("--input", metavar="FILE", help="users, JSON lines; - = standard input")
    parser.add_argument("--output", default="-", metavar="FILE", help="default: standard output")
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="default 10")
    parser.add_argument("--keep-seen", action="store_true", help="recommend seen items too")
    parser.add_argument("--exclude", default="", metavar="IDS", help="never recommend these")
    parser.add_argument("--allow", metavar="IDS", help="recommend only these")
    parser.add_argument("--titles", metavar="FILE", help="a table with the columns id and title")
    parser.add_argument("--step", type=int, metavar="N", help="of the checkpoint; default the best")
    parser.add_argument("--batch-users", type=int, default=128, metavar="N", help="default 128")
    parser.add_argument("--json", action="store_true", help="answer --history in JSON")
    arguments = parser.parse_args(argv)
    if arguments.history is not None and arguments.output != "-":
        raise UserError("--output goes with --input; --history is answered on standard output")
    if arguments.top_k < 1:
        raise UserError(f"--top-k must be at least 1, got {arguments.top_k}")
    return arguments


def _open(arguments: argparse.Namespace, batch_users: int):
    """Returns the recommender, and which items it may recommend."""
    recommender = Recommender.load(arguments.workdir, step=arguments.step, batch_users=batch_users)
    num_items = recommender.catalogue.num_items
    if arguments.top_k > num_items:
        _say(f"--top-k={arguments.top_k} is more than the catalogue: it has {num_items:,} items")
    exclude = _user_lines.read_ids("--exclude", arguments.exclude)
    allow = arguments.allow
    allow = None if allow is None else _user_lines.read_ids("--allow", allow)
    return recommender, recommender.catalogue.allowed(exclude, allow)


def recommend_one(arguments: argparse.Namespace, titles: dict[str, str]) -> int:
    """Prints what is recommended for `--history`."""
    recommender, allowed = _open(arguments, batch_users=1)
    history = _user_lines.read_ids("--history", arguments.history)
    (answer,) = recommender.answer_allowed(
        [history], arguments.top_k, allowed, exclude_seen=not arguments.keep_seen
    )
    if answer.unknown:
        _say(f"skipped {describe_unknown(answer.unknown)}")
    if answer.is_popular:
        why = "no id of the history is known" if history else "the history is empty"
        _say(f"{why}: these are the most popular items, with how often they were trained on")
    if arguments.json:
        print(json.dumps(_user_lines.as_json(answer, titles), ensure_ascii=False))
        return 0
    if not answer.items:
        _say("nothing is left to recommend: what is allowed stands in the history (--keep-seen)")
    for place, (raw, score) in enumerate(answer.items, start=1):
        print(f"{place:>4}  {score:>10.4f}  {raw}  {titles.get(raw, '')}".rstrip())
    return 0


def recommend_all(arguments: argparse.Namespace, titles: dict[str, str]) -> int:
    """Answers every line of `--input`, and reports the rate and what went wrong."""
    with _opened(arguments) as (source, target):
        recommender, allowed = _open(arguments, arguments.batch_users)
        began, users, popular, bad, unknown = time.monotonic(), 0, 0, 0, {}
        for chunk in _chunks(_user_lines.read_lines(_with_progress(source, arguments.input))):
            for line in (line for line in chunk if isinstance(line, BadLine)):
                bad += 1
                _say(f"{arguments.input}:{line.number}: {line.reason}: {line.text[:200]}")
            present = [line for line in chunk if not isinstance(line, BadLine)]
            answers = recommender.answer_allowed(
                [user.history for user in present],
                arguments.top_k,
                allowed,
                exclude_seen=not arguments.keep_seen,
            )
            for user, answer in zip(present, answers, strict=True):
                name = {} if user.name is None else {"user": user.name}
                found = name | _user_lines.as_json(answer, titles)
                target.write(json.dumps(found, ensure_ascii=False) + "\n")
                unknown |= dict.fromkeys(answer.unknown)
                popular += answer.is_popular
            users += len(present)
    seconds = time.monotonic() - began
    _say(f"{users:,} users in {seconds:.1f} s, {users / max(seconds, 1e-9):,.0f} users/s")
    if unknown:
        _say(f"skipped {describe_unknown(list(unknown))}")
    if popular:
        _say(f"{popular:,} users have no known item in their history and got popular items")
    if bad:
        _say(f"error: {bad:,} line(s) could not be read and are not answered")
    return 1 if bad else 0


def _chunks(lines: Iterator) -> Iterator[list]:
    while chunk := list(itertools.islice(lines, _CHUNK)):
        yield chunk


def _with_progress(source: IO[bytes], name: str) -> Iterator[bytes]:
    """Shows on a terminal how many lines were read, and for a file how long the rest will take."""
    total = None
    if name != "-" and sys.stderr.isatty():
        with open(name, "rb") as file:
            total = sum(1 for _ in file)
    return iter(tqdm.tqdm(source, total=total, unit=" users", disable=None, leave=False))


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[tuple[IO[bytes], IO[str]]]:
    """Opens input and output; a file appears under its name when everything is in it."""
    with contextlib.ExitStack() as stack:
        source, target = sys.stdin.buffer, sys.stdout
        if arguments.input != "-":
            if not pathlib.Path(arguments.input).is_file():
                raise UserError(f"--input={arguments.input}: there is no such file")
            source = stack.enter_context(open(arguments.input, "rb"))
        if arguments.output == "-":
            yield source, target
            return
        output = pathlib.Path(arguments.output)
        if output.exists():
            raise UserError(f"--output={output} is there already: name another, or delete it")
        partial = output.with_name(f"{output.name}.partial")
        output.parent.mkdir(parents=True, exist_ok=True)
        target = stack.enter_context(open(partial, "w", encoding="utf-8"))
        yield source, target
        target.close()
        os.replace(partial, output)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    _cli.run(main)
