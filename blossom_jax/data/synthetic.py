"""A log with planted long- and short-term interests, made from a seed.

A history opens with the user's profile: one item for each of 8 traits, in random order, that tells
which of 4 choices the user has in that trait. Nothing later repeats it. Then follow

- a short-term walk: walk items stand on a ring, and the next event lies one place further with
  probability 0.8, two with 0.2, whatever the user. The last event is all there is to know.
- four questions. A question names two traits and is followed by two answers, one item for each
  trait's choice. Every trait is asked once, choices are independent, and answers are other items
  than the profile's, so neither earlier answers nor any recent event help: the profile does, which
  lies up to a whole history back.

Half of the users end on a question's two answers, which leave-one-out makes the validation and the
test target; the other half end on the walk. The best possible recall@1 there is 1 and 0.8; without
the profile it is 1/4 for the former. Raw ids say what an item is: profile-t-c, question-q,
answer-t-c, walk-n. No item occurs twice in a history while the ring is longer than the walk.

`generate_lengths` makes such histories of several lengths, so that recall by length of history is
recall by distance: all users end on a question there, and the profile lies a whole history back.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from blossom_jax.errors import UserError

TRAITS = 8
CHOICES = 4
STEP_OF_ONE = 0.8
_QUESTIONS = TRAITS // 2
_QUESTION_EVENTS = 3  # the question and two answers
_SPECIAL_ITEMS = 2 * TRAITS * CHOICES + _QUESTIONS
_WALK_EVENTS = 2  # left at every quarter's end, so that odd users end on the walk
_SHORTEST = TRAITS + _QUESTIONS * (_QUESTION_EVENTS + _WALK_EVENTS)
_FIRST_SECOND = 1_600_000_000
_HOUR = 3600


def generate(
    *, num_users: int, num_items: int, history_length: int, seed: int, question_every: int = 2
) -> pl.DataFrame:
    """Makes the log.

    Args:
      num_users: Even-numbered ones (from 0) end on a question, odd-numbered ones on the walk.
      num_items: Size of the vocabulary; what the special items leave is the ring.
      history_length: Events of every user.
      seed: Of the generator.
      question_every: Another share of users to end on a question: every how many-th does.

    Returns:
      Columns user (number from 0), item (raw id) and time (Unix seconds, an hour apart), user by
      user, for `prepare.from_table`.

    Raises:
      UserError: Sizes too small for the structure.
    """
    ring = num_items - _SPECIAL_ITEMS
    if num_users < 1 or ring < 3 or history_length < _SHORTEST:
        raise UserError(
            f"{num_users=} must be at least 1, {num_items=} at least {_SPECIAL_ITEMS + 3} and "
            f"{history_length=} at least {_SHORTEST}"
        )
    rng = np.random.default_rng(seed)
    starts = _question_starts(rng, num_users, history_length)
    starts[::question_every, -1] = history_length - _QUESTION_EVENTS
    codes = _walk(rng, starts, history_length, ring)
    _plant(rng, codes, starts, ring)
    hours = np.arange(history_length) + rng.integers(0, 24 * 30, (num_users, 1))
    return pl.DataFrame(
        {
            "user": np.repeat(np.arange(num_users), history_length),
            "item": np.array(_vocabulary(ring))[codes.ravel()],
            "time": _FIRST_SECOND + _HOUR * hours.ravel(),
        }
    )


def generate_lengths(
    *, history_lengths: Sequence[int], events_of_each: int, num_items: int, seed: int
) -> pl.DataFrame:
    """Makes a log of histories of several lengths, about as many events of each.

    Args:
      history_lengths: Events of a user.
      events_of_each: Of all users with the same length, rounded down to whole users.
      num_items: As in `generate`.
      seed: Of the first length; the others count on from there.

    Returns:
      As `generate`; every user ends on a question.

    Raises:
      UserError: As there.
    """
    parts: list[pl.DataFrame] = []
    num_users = 0
    for n, length in enumerate(history_lengths):
        users = events_of_each // length
        part = generate(
            num_users=users,
            num_items=num_items,
            history_length=length,
            seed=seed + n,
            question_every=1,
        )
        parts.append(part.with_columns(pl.col("user") + num_users))
        num_users += users
    return pl.concat(parts)


def _vocabulary(ring: int) -> list[str]:
    """Returns raw ids by code: walk, profile, answer, question."""
    pairs = [f"{trait}-{choice}" for trait in range(TRAITS) for choice in range(CHOICES)]
    return [
        *(f"walk-{place}" for place in range(ring)),
        *(f"profile-{pair}" for pair in pairs),
        *(f"answer-{pair}" for pair in pairs),
        *(f"question-{question}" for question in range(_QUESTIONS)),
    ]


def _question_starts(rng: np.random.Generator, num_users: int, length: int) -> np.ndarray:
    """Returns int[num_users, questions]: one start in each quarter of what follows the profile."""
    bounds = np.linspace(TRAITS, length, _QUESTIONS + 1).astype(int)
    latest = bounds[1:] - _QUESTION_EVENTS - _WALK_EVENTS
    return rng.integers(bounds[:-1], latest + 1, (num_users, _QUESTIONS))


def _walk(rng: np.random.Generator, starts: np.ndarray, length: int, ring: int) -> np.ndarray:
    """Returns codes int[num_users, length]; the walk stands still where others will be planted."""
    columns = np.arange(length)
    planted = columns < TRAITS
    for event in range(_QUESTION_EVENTS):
        planted = planted | (columns == starts[:, :, None] + event).any(axis=1)
    steps = np.where(rng.random((len(starts), length)) < STEP_OF_ONE, 1, 2)
    place = rng.integers(0, ring, (len(starts), 1)) + np.cumsum(steps * ~planted, axis=1)
    return place % ring


def _plant(rng: np.random.Generator, codes: np.ndarray, starts: np.ndarray, ring: int) -> None:
    """Writes profiles, questions and answers into the codes."""
    num_users = len(codes)
    chosen = np.arange(TRAITS) * CHOICES + rng.integers(0, CHOICES, (num_users, TRAITS))
    profile, answer = ring + chosen, ring + TRAITS * CHOICES + chosen
    codes[:, :TRAITS] = rng.permuted(profile, axis=1)
    order = rng.permuted(np.tile(np.arange(_QUESTIONS), (num_users, 1)), axis=1)
    rows = np.arange(num_users)[:, None]
    codes[rows, starts] = ring + 2 * TRAITS * CHOICES + order
    codes[rows, starts + 1] = answer[rows, 2 * order]
    codes[rows, starts + 2] = answer[rows, 2 * order + 1]
