"""Users and their histories as JSON lines, read and answered in chunks."""

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from blossom_jax.errors import UserError
from blossom_jax.recommender import Answer

EXAMPLE = '{"user": "u1", "history": ["12", "7"]}'


class User(NamedTuple):
    """One line of the input.

    Attributes:
      name: What stands under "user", whatever it is; None where nothing does.
      history: Raw ids, in time order.
    """

    name: Any
    history: list[str]


class BadLine(NamedTuple):
    """A line that is no user, and why."""

    number: int
    reason: str
    text: str


def read_lines(lines: Iterable[bytes]) -> Iterator[User | BadLine]:
    """Yields what each line of UTF-8 holds that is not blank."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                content = json.loads(line.decode("utf-8-sig"))
                json.dumps(content, ensure_ascii=False).encode()  # half a character is no text
                yield _user(content)
            except ValueError as error:  # of these, and UserError
                yield BadLine(number, _reason(error), line.decode(errors="replace").strip())


def _reason(error: ValueError) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"not {'UTF-8' if isinstance(error, UnicodeError) else 'JSON'} ({error})"


def _user(content: Any) -> User:
    if not isinstance(content, dict) or not isinstance(content.get("history"), list):
        raise UserError(f"not an object with a list 'history', as {EXAMPLE}")
    history = content["history"]
    for raw in history:
        if not isinstance(raw, str | int) or isinstance(raw, bool):
            raise UserError(f"an id is text or a whole number, not {json.dumps(raw)}")
    return User(content.get("user"), [str(raw) for raw in history])


def as_json(answer: Answer, titles: dict[str, str]) -> dict[str, Any]:
    """Returns an answer as JSON values.

    Returns:
      {"items": [{"id": .., "score": .., "title": ..}], "unknown": [..], "popular": True}; "title"
      is there where there are titles, and the last two where they are not empty or false.
    """
    items = [{"id": raw, "score": score} for raw, score in answer.items]
    if titles:
        items = [item | {"title": titles.get(item["id"], "")} for item in items]
    found: dict[str, Any] = {"items": items}
    if answer.unknown:
        found["unknown"] = answer.unknown
    if answer.is_popular:
        found["popular"] = True
    return found


def read_ids(flag: str, text: str) -> list[str]:
    """Returns the raw ids of a flag: separated by commas, or `@FILE` with one a line.

    Raises:
      UserError: No such file, or one that is not UTF-8.
    """
    if not text.startswith("@"):
        return [raw.strip() for raw in text.split(",") if raw.strip()]
    path = pathlib.Path(text[1:])
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{flag}={text}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{flag}={text}: {path} is not UTF-8: {error}") from error
    return [line.strip() for line in lines if line.strip()]
