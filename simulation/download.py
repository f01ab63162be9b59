"""`fedferry download`: fetch what TFF published, resuming, checked, and put in its place in one step."""

import hashlib
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from settings.errors import InputError
from simulation.transfer import Transfer
from tasks.data import open_population
from tasks.published import Published, Remote
from weights.keras import load_model

_CHUNK_BYTES = 1 << 20


def download(name: str, published: Published, cache: Path, transfer: Transfer) -> Path:
    """Fetch something, unless it is there.

    A file of the right name that lies in `cache` already, put there by hand, is taken instead of the
    server's. What comes is checked before it is put into `cache/NAME`, which appears whole or not at all.

    Returns:
        The file to open.

    Raises:
        InputError: No network, a server that does not have it, a file that is not what was published,
            no room, or another download of the same thing that is going on.
    """
    console = Console(highlight=False)
    target = cache / name
    first = target / published.files[0]
    with _alone(cache, name):
        if all((target / file).is_file() for file in published.files):
            console.print(f"{first} is there already", soft_wrap=True, markup=False)
            return first
        # Of a process that was killed while it unpacked.
        for left in cache.glob(f".{name}.{'?' * 8}"):
            shutil.rmtree(left)
        fetched = []
        for remote in published.remotes:
            console.print(f"fetching {remote.url}", soft_wrap=True, markup=False)
            fetched.append(_fetched(remote, cache, transfer))
        with _appearing(target) as folder:
            for file in fetched:
                with console.status(f"unpacking {file.name}"):
                    _unpack(file, folder, published.files)
            for wanted in published.files:
                _check(folder / wanted)
        for file in fetched:
            file.unlink(missing_ok=True)
    console.print(f"{first}: {describe(first)}", soft_wrap=True, markup=False)
    return first


def describe(path: Path) -> str:
    """What is in a file: `715 clients`, `4,045,398 parameters`. InputError where it cannot be read."""
    if path.suffix == ".h5":
        return f"{len(open_population(path, 'train').client_ids):,} clients"
    return f"{sum(array.numel() for array in load_model(path).parameters()):,} parameters"


@contextmanager
def _alone(cache: Path, name: str) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"another process is downloading {name} into {cache}") from None
    except OSError as error:
        raise InputError(f"{cache}: cannot be written: {error}") from error


def _fetched(remote: Remote, cache: Path, transfer: Transfer) -> Path:
    """The remote file in the cache, whole and checked: put there by hand, or fetched now."""
    path = cache / remote.name
    if path.exists():
        wrong = _difference(path, remote)
        if wrong:
            raise InputError(f"{path} is not the file that TFF published ({wrong}): remove it")
        return path
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists()
    wrong = _difference(transfer.fetch(remote.url, part, path), remote)
    if wrong and resumed:
        # The beginning, from an earlier attempt, may be the damaged half.
        part.unlink()
        wrong = _difference(transfer.fetch(remote.url, part, path), remote)
    if wrong:
        part.unlink()
        raise InputError(
            f"{remote.url} gave something else than TFF published ({wrong}); it was deleted"
        )
    return part.replace(path)


def _difference(path: Path, remote: Remote) -> str:
    """What is wrong with a file; empty if nothing is."""
    if remote.size and path.stat().st_size != remote.size:
        return f"{path.stat().st_size:,} bytes instead of {remote.size:,}"
    if not remote.sha256:
        return ""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == remote.sha256 else f"SHA-256 {found} instead of {remote.sha256}"


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to fill, which then becomes `target` in one step; deleted on errors."""
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        folder.mkdir()
        yield folder
        shutil.rmtree(target, ignore_errors=True)
        folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(file: Path, folder: Path, wanted: tuple[str, ...]) -> None:
    """Put the wanted files of an archive, or the file itself, into a folder.

    Of a member only the content is used: neither its path nor its kind of link can lead elsewhere.
    """
    if not file.name.endswith(".tar.bz2"):
        shutil.copyfile(file, folder / file.name)
        return
    try:
        with tarfile.open(file, "r:bz2") as archive:
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if member.isreg() else None
                if content and name in wanted:
                    with (folder / name).open("wb") as target:
                        shutil.copyfileobj(content, target, _CHUNK_BYTES)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{file} is not an archive that can be unpacked: {error}") from error


def _check(path: Path) -> None:
    """InputError unless the file is there and opens."""
    if not path.is_file():
        raise InputError(f"what was fetched has no {path.name} in it")
    describe(path)
