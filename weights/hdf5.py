"""HDF5 files of other people, opened without trusting them.

A file may point elsewhere (soft and external links, external storage, virtual datasets), be cut
short, or claim sizes that it does not hold. Here such a file is an `InputError`; what remains is a
flat table of the file's own groups and datasets.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import h5py
import numpy as np
import numpy.typing as npt

from settings.errors import InputError

MAX_OBJECTS = 100_000
MAX_DEPTH = 16
MAX_ATTRIBUTE = 64 * 2**20

# What h5py raises for damaged files, by way of HDF5's error classes and Python's.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError)


@contextmanager
def open_hdf5(source: str | IO[bytes], where: str, mode: str = "r") -> Iterator[h5py.File]:
    """Opens an HDF5 file.

    Args:
        source: A path, or the file's bytes as a file object.
        where: The file's name for errors.
        mode: `r` or `r+`.

    Raises:
        InputError: The file is not HDF5 or is cut short, on opening or while it is being read.
    """
    try:
        file = h5py.File(source, mode)
    except OSError as error:
        raise InputError(f"{where}: not a readable HDF5 file: {_line(error)}") from error
    with file:
        yield file


def contents(file: h5py.File, where: str) -> dict[str, h5py.Group | h5py.Dataset]:
    """All groups and datasets by path, without a leading slash; the root is "".

    Raises:
        InputError: The file refers to other files or objects, or has too many or too deep ones.
    """
    table: dict[str, h5py.Group | h5py.Dataset] = {"": file}
    pending = [("", file, 0)]
    while pending:
        prefix, group, depth = pending.pop()
        if depth > MAX_DEPTH or len(table) > MAX_OBJECTS:
            raise InputError(f"{where}: more groups than a Keras file has, near {prefix!r}")
        for name, item in _members(group, prefix, where):
            path = f"{prefix}/{name}" if prefix else name
            table[path] = item
            if isinstance(item, h5py.Group):
                pending.append((path, item, depth + 1))
    return table


def _members(
    group: h5py.Group, prefix: str, where: str
) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """What lies directly in a group, each of it in this very file."""
    try:
        for name in group:
            # The link first: following an external one would already open another file.
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(f"{where}: {prefix}/{name} is a link to elsewhere")
            item = group[name]
            if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                raise InputError(f"{where}: {prefix}/{name} has its data in other files")
            yield name, item
    except HDF5_ERRORS as error:
        raise InputError(f"{where}: damaged near {prefix!r}: {_line(error)}") from error


def text(item: h5py.Group, name: str, where: str) -> str | None:
    """A text attribute, which Keras has written as bytes and as str, or None if there is none."""
    values = _attribute(item, name, where)
    if values is None:
        return None
    if len(values) != 1:
        raise InputError(f"{where}: the attribute {name} holds {len(values)} texts, not one")
    return values[0]


def names(item: h5py.Group, name: str, where: str) -> list[str] | None:
    """A list of names, or None if there is none.

    Keras splits a list too long for one attribute into `name0`, `name1`, and so on.
    """
    whole = _attribute(item, name, where)
    if whole is not None:
        return whole
    parts: list[list[str]] = []
    while (part := _attribute(item, f"{name}{len(parts)}", where)) is not None:
        parts.append(part)
    return [value for part in parts for value in part] if parts else None


def read(dataset: h5py.Dataset, shape: tuple[int, ...], what: str) -> npt.NDArray[np.float32]:
    """A float32 dataset of a known shape.

    Args:
        dataset: Read only once its own shape and dtype have proved right.
        shape: What the model needs.
        what: File, layer and weight, for errors.

    Returns:
        float32, in the machine's byte order.
    """
    _check(dataset, shape, what)
    try:
        return np.asarray(dataset[()], dtype=np.float32)
    except HDF5_ERRORS as error:
        raise InputError(f"{what} cannot be read: {_line(error)}") from error


def write(dataset: h5py.Dataset, array: npt.NDArray[np.float32], what: str) -> None:
    """Replaces a float32 dataset's values by others of its shape; errors name it as `what`."""
    _check(dataset, array.shape, what)
    try:
        dataset[...] = array
    except HDF5_ERRORS as error:
        raise InputError(f"{what} cannot be written: {_line(error)}") from error


def _check(dataset: h5py.Dataset, shape: tuple[int, ...], what: str) -> None:
    if dataset.shape != shape:
        raise InputError(f"{what} has shape {dataset.shape}, the model needs {shape}")
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize != 4:
        raise InputError(f"{what} is {dataset.dtype}, only float32 is supported")


def _attribute(item: h5py.Group, name: str, where: str) -> list[str] | None:
    """The texts in an attribute, or None if there is none."""
    try:
        if name not in item.attrs:
            return None
        attribute = item.attrs.get_id(name)
        if attribute.shape is None or 0 in attribute.shape:
            return []  # of any type: Keras writes an empty list as floats
        # Asked before reading: HDF5 believes a damaged type and crashes.
        if h5py.check_string_dtype(attribute.dtype) is None:
            raise InputError(f"{where}: the attribute {name} is not text")
        if attribute.get_storage_size() > MAX_ATTRIBUTE:
            raise InputError(f"{where}: the attribute {name} is too long")
        value = item.attrs[name]
        values = list(value) if attribute.shape else [value]
        return [one.decode() if isinstance(one, bytes) else str(one) for one in values]
    except UnicodeDecodeError:
        raise InputError(f"{where}: the attribute {name} is not UTF-8") from None
    except HDF5_ERRORS as error:
        raise InputError(f"{where}: the attribute {name} cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
    """HDF5's errors span lines; a user's error is one."""
    return " ".join(str(error).split())
