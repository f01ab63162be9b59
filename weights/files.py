"""Files that are replaced or lengthened in one step: a reader finds the old content or the new, never half of it."""

import io
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from errno import ENOSPC
from pathlib import Path

from settings.errors import InputError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}|\.tmp[0-9A-Za-z]{6}")
"""Our own, and those that safetensors writes into before it gives them our names."""


def check_file(path: Path) -> None:
    """Raise InputError if `path` is not a file that can be read: data, a checkpoint, a log."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: a folder, not a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: a device, not a file")


def check_word(text: str, *words: str) -> None:
    """Raise InputError if `text` is no file, but nearly one of the words that may stand for one."""
    near = get_close_matches(Path(text).name, words, n=1)  # deployed, it is an absolute path
    if near and not Path(text).exists():
        raise InputError(f"{text}: no such file; did you mean {near[0]}?")


def check_place(path: Path) -> None:
    """Raise InputError if `path` cannot be written: better said before the work than after. Touches nothing."""
    _check_replaceable(path)
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{path}: cannot be written: {nearest} is not a folder that takes files")


def _check_replaceable(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # there is nothing to replace
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: cannot be written: it is a folder")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: cannot be written: it is a device, not a file")


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A file beside `path` to write, which then replaces `path` in one step; deleted on errors.

    Args:
        path: What is replaced; of a link, what it points to.
        durable: Wait until the disk has it, so that the machine's end does not undo it.

    Raises:
        InputError: The folder or the disk does not take it.
    """
    _check_replaceable(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync_names(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written: {error}") from error
        raise


class Growing:
    """A file that is only lengthened: what cannot be written is kept, and written later.

    Args:
        path: The first flush makes it.
        size: Bytes that it keeps of what it holds.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._path = path
        self._written = size
        self._pending: list[bytes] = []
        self._file: io.FileIO | None = None

    def write(self, data: bytes) -> None:
        """Add to what the next flush appends."""
        self._pending.append(data)

    def flush(self, *, durable: bool = False) -> None:
        """Append what has been written since the last one, all of it or nothing.

        Args:
            durable: Wait until the disk has it.

        Raises:
            InputError: The disk does not take it; the next flush tries again.
        """
        data = b"".join(self._pending)
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
            self._cut(self._file)
            try:
                if self._file.write(data) < len(data):
                    raise OSError(ENOSPC, "no space left")
                if durable:
                    os.fsync(self._file.fileno())
            except OSError:
                self._cut(self._file)
                raise
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written: {error}") from error
        self._written += len(data)
        self._pending.clear()

    def _cut(self, file: io.FileIO) -> None:
        """Take away what does not belong to it: of an older run, or of a flush that was stopped half-way."""
        if os.fstat(file.fileno()).st_size > self._written:
            file.truncate(self._written)


def sync(path: Path) -> None:
    """Wait until the disk has a file and its name; InputError if it cannot."""
    try:
        _sync(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
    _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    with suppress(OSError):  # not every file system can
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear_temporaries(folder: Path) -> None:
    """Delete what `replacing` and safetensors left anywhere in a folder when their process was killed."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
