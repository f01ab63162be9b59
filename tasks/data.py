"""Populations: clients and their examples, from memory, TFF's HDF5 files or TFF's SQLite files."""

import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from settings.errors import InputError, unknown
from weights.files import check_file

Examples = dict[str, npt.NDArray[Any]]
"""One client's examples: feature name -> array whose leading dimension counts the examples."""

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
HUB = "hf:"
"""What stands before the name of a data set on the Hugging Face Hub, in place of a path."""

_SPLIT_IN_NAME = re.compile(r"(?P<before>.*_)(?P<split>train|test)(?P<after>(?![A-Za-z]).*)")


class Population(Protocol):
    """Clients and their examples, one split. Lazy: opening it reads the index and no example."""

    @property
    def client_ids(self) -> Sequence[str]:
        """All client ids, sorted as TFF sorts them."""

    def __contains__(self, client_id: object) -> bool:
        """Whether this split has the client: one with training data may have no test data."""

    def examples(self, client_id: str) -> Examples:
        """One client's examples, in the file's order; a client without any has empty arrays.

        Raises:
            InputError: No such client, or the client's data cannot be read.
        """


class Lazy:
    """A population made of its client ids and a function that reads one client's examples."""

    def __init__(self, client_ids: Iterable[str], read: Callable[[str], Examples]) -> None:
        self._client_ids = sorted(client_ids, key=_text)
        self._known = frozenset(self._client_ids)
        self._read = read

    @property
    def client_ids(self) -> Sequence[str]:
        """All client ids, sorted."""
        return self._client_ids

    def __contains__(self, client_id: object) -> bool:
        """Whether there is such a client."""
        return client_id in self._known

    def examples(self, client_id: str) -> Examples:
        """One client's examples. InputError for an unknown id or features of different lengths."""
        if client_id not in self._known:
            raise unknown("client id", client_id, self._client_ids)
        examples = self._read(client_id)
        for name, array in examples.items():
            if not isinstance(array, np.ndarray):
                kind = type(array).__name__
                raise InputError(
                    f"client {client_id!r}: {name} must be a numpy array, not a {kind}"
                )
        lengths = {array.shape[:1] for array in examples.values()}
        if len(lengths) > 1 or () in lengths:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in examples.items())
            raise InputError(f"client {client_id!r}: features must be equally long, not {shapes}")
        return examples


def _text(client_id: str) -> str:
    if not isinstance(client_id, str):
        raise InputError(f"a client id is text, not {client_id!r}")
    return client_id


class InMemory(Lazy):
    """A population held in memory, for a user's own data and for tests."""

    def __init__(self, clients: Mapping[str, Examples]) -> None:
        super().__init__(clients, clients.__getitem__)


def open_population(path: str | Path, split: Split) -> Population:
    """Open one split of a file in a layout of TFF's, or of a data set `hf:NAME` (`tasks.hub`).

    HDF5 (`examples/<client>/<feature>`) keeps its splits in sibling files `*_train.h5` and
    `*_test.h5`: either path opens either split. SQLite (`.sqlite`, `.sqlite.lzma`) holds both.

    Strings become 1-D object arrays of `bytes`; HDF5's fixed-length ones lose trailing NULs, as in
    TFF. Other features keep the dtype and shape that HDF5 has; for SQLite see `tasks.sqlite`.

    Raises:
        InputError: No such file, no such split, or not a file that can be read.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if str(path).startswith(HUB):
        # Imported when needed: `tasks.hub` builds on this module.
        from tasks.hub import open_hub

        return open_hub(str(path).removeprefix(HUB), split)
    path = Path(path)
    check_file(path)
    if path.name.endswith((".sqlite", ".lzma")) or _starts_like_sqlite(path):
        # As `tasks.hub`.
        from tasks.sqlite import open_sqlite

        return open_sqlite(path, split)
    return _open_hdf5(_file_of_split(path, split))


class _Closeable(Protocol):
    def close(self) -> None: ...


_Handle = TypeVar("_Handle", bound=_Closeable)


class PerProcess(Generic[_Handle]):
    """An open file that survives a fork: every process opens its own, closed with this object."""

    def __init__(self, open_: Callable[[], _Handle]) -> None:
        self._open = open_
        self._handles: dict[int, _Handle] = {}

    def get(self) -> _Handle:
        """This process's handle, opened on first use."""
        pid = os.getpid()
        if pid not in self._handles:
            self._handles[pid] = handle = self._open()
            weakref.finalize(self, only_in, pid, handle.close)
        return self._handles[pid]


def only_in(pid: int, action: Callable[[], object]) -> None:
    """Run a finalizer in its own process alone: a forked child must not end its parent's files."""
    if os.getpid() == pid:
        action()


def _starts_like_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _file_of_split(path: Path, split: Split) -> Path:
    """The HDF5 file of a split: `path` itself or its sibling."""
    match = _SPLIT_IN_NAME.fullmatch(path.name)
    if match is None:
        if split == "train":
            return path
        raise InputError(
            f"{path} holds one split: name it {path.stem}_train{path.suffix} "
            f"and put {path.stem}_test{path.suffix} beside it to have a test split"
        )
    sibling = path.with_name(match["before"] + split + match["after"])
    if not sibling.is_file():
        raise InputError(f"no {split} split: {path} is there, its sibling {sibling} is not")
    return sibling


def _open_hdf5(path: Path) -> Lazy:
    file = PerProcess(partial(h5py.File, path, "r"))
    with _reading(path):
        # Names alone: TFF's EMNIST has 3,400 clients and its Stack Overflow 342,477.
        return Lazy(_child(path, file.get(), "examples", h5py.Group), partial(_read, path, file))


def _read(path: Path, file: PerProcess[h5py.File], client_id: str) -> Examples:
    with _reading(path):
        clients = _child(path, file.get(), "examples", h5py.Group)
        client = _child(path, clients, client_id, h5py.Group)
        return {name: _array(path, _child(path, client, name, h5py.Dataset)) for name in client}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever h5py raises about the file becomes an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged, or not an HDF5 or SQLite file: {reason}") from error


def _child(path: Path, parent: h5py.Group, name: str, kind: type) -> Any:
    """A group's member of some kind, in this very file: a link could lead to any file at all."""
    child = parent.get(name, getlink=True)
    if isinstance(child, h5py.HardLink):
        child = parent[name]
    if not isinstance(child, kind):
        found = "missing" if child is None else f"a {type(child).__name__}"
        where = f"{parent.name.rstrip('/')}/{name}"
        raise InputError(f"{path}: {where} must be a {kind.__name__} and is {found}")
    return child


def _array(path: Path, dataset: h5py.Dataset) -> npt.NDArray[Any]:
    text = h5py.check_string_dtype(dataset.dtype) is not None
    if dataset.external or dataset.is_virtual or not (text or dataset.dtype.kind in "biuf"):
        raise InputError(f"{path}: {dataset.name} must hold numbers or strings, in the file itself")
    array = np.asarray(dataset[()])
    return array.astype(object) if text else array
