"""A user's mistake, said in one line."""

import traceback
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

_LONGEST = 300


class InputError(ValueError):
    """Bad input: a file, an option or a value. The command prints the message alone and exits with 2."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """An error for a name that is not one of `choices`: it names the nearest ones, or all if few.

    Args:
        kind: What was named, for instance "client id".
        name: What the user wrote.
        choices: The valid names.
    """
    valid = list(choices)
    near = (
        get_close_matches(name, valid, n=3, cutoff=0.5)
        or [choice for choice in valid if name.lower() in choice.lower()][:3]
    )
    if len(valid) <= 12:
        hint = f"choose from {', '.join(valid)}" if valid else "there are none"
    elif near:
        hint = f"the nearest are {', '.join(near)}"
    else:
        hint = f"there are {len(valid):,}, {valid[0]} and {valid[1]} among them"
    return InputError(f"unknown {kind} {name!r}: {hint}")


def few(names: Sequence[object], shown: int = 5, of: int = 0) -> str:
    """`a, b, c and 7 more`: the first names; `of` how many, where these are not all."""
    said, count = ", ".join(map(str, names[:shown])), max(of, len(names))
    return f"{said} and {count - shown} more" if count > shown else said


def counted(number: int, what: str, several: str = "") -> str:
    """`1 node`, `2,000 nodes`: a number of things; `several` is their plural where it takes more than an s."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def shorten(text: str) -> str:
    """A text from elsewhere, at a length that a log or a panel bears."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def place_of(error: Exception) -> str:
    """File and line of the last code on the way to an error that is not an installed package's."""
    frames = [*traceback.extract_tb(error.__traceback__)]
    own = [
        f for f in frames if "site-packages" not in f.filename and not f.filename.startswith("<")
    ]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"
