"""What TFF's tutorials download: where it is published, and where it lies once it has been fetched."""

from dataclasses import dataclass
from pathlib import Path

import platformdirs

from settings.errors import InputError, unknown

_DATA = "https://storage.googleapis.com/tff-datasets-public/"
_MODELS = "https://storage.googleapis.com/tff-models-public/"
_DICKENS_BYTES = 16_193_984


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        url: Its address.
        sha256: The checksum that TFF checks; empty: none was published.
        size: Bytes, where there is no checksum.
    """

    url: str
    sha256: str = ""
    size: int = 0

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Published:
    """A data set or a model: what to fetch, and the files that come of it, the one to open first."""

    remotes: tuple[Remote, ...]
    files: tuple[str, ...]


def _archive(name: str, sha256: str) -> Published:
    remote = Remote(f"{_DATA}{name}.tar.bz2", sha256)
    return Published((remote,), (f"{name}_train.h5", f"{name}_test.h5"))


def _models(*names: str) -> Published:
    return Published(tuple(Remote(_MODELS + name, size=_DICKENS_BYTES) for name in names), names)


PUBLISHED = {
    "shakespeare": _archive(
        "shakespeare", "0285be9906cb5f268092eee4edeeacfc2af4574f2941f7cc2f08a321d7f5c707"
    ),
    "emnist": _archive(
        "fed_emnist", "fe1ed5a502cea3a952eb105920bff8cffb32836b5173cb18a57a32c3606f3ea0"
    ),
    "emnist-digits": _archive(
        "fed_emnist_digitsonly", "55333deb8546765427c385710ca5e7301e16f4ed8b60c1dc5ae224b42bd5b14b"
    ),
    "dickens": _models("dickens_rnn.batch8.kerasmodel", "dickens_rnn.batch1.kerasmodel"),
}


def cache_folder() -> Path:
    """Where `fedferry download` puts things: the user's cache, `~/.cache/fedferry` on Linux."""
    return platformdirs.user_cache_path("fedferry")


def cached(name: str) -> Path:
    """The file to open of something in `PUBLISHED`.

    Raises:
        InputError: It has not been fetched, or its name is unknown.
    """
    if name not in PUBLISHED:
        raise unknown("download", name, PUBLISHED)
    path = cache_folder() / name / PUBLISHED[name].files[0]
    if not path.is_file():
        raise InputError(f"{path} is not there yet: fetch it with `fedferry download {name}`")
    return path
