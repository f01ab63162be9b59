"""TFF's SQLite layout: one `tf.train.Example` a row, the file plain or LZMA-compressed."""

import lzma
import os
import sqlite3
import tempfile
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from settings.errors import InputError
from tasks.data import Examples, Lazy, PerProcess, Split, only_in

_TABLES = {"examples", "client_metadata"}
# TFF's EMNIST file keeps its digits apart from its letters, under split names of their own.
_SPLIT_NAMES: dict[Split, Sequence[str]] = {
    "train": ("train", "digits_only_train"),
    "test": ("test", "digits_only_test"),
}
# TFF's files expand 4- to 20-fold, a nearly empty database 100-fold, a zip bomb 7,000-fold.
_LARGEST_EXPANSION = 1000
_CHUNK_BYTES = 1 << 20

_DTYPES: dict[str, npt.DTypeLike] = {
    "bytes_list": object,
    "float_list": np.float32,
    "int64_list": np.int64,
}
# What TFF's EMNIST loader makes of its two features: records store neither shapes nor int32.
_SPECS: dict[str, tuple[str, npt.DTypeLike, tuple[int, ...]]] = {
    "pixels": ("float_list", np.float32, (28, 28)),
    "label": ("int64_list", np.int32, ()),
}

# tf.train.Example, declared here so that TensorFlow is not needed.
_EXAMPLE_PROTO = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type {
  name: "BytesList" field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED }
}
message_type {
  name: "FloatList" field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED }
}
message_type {
  name: "Int64List" field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED }
}
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: "BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: "FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: "Int64List" oneof_index: 0 }
}
message_type {
  name: "Features"
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: "Feature" }
  }
  field {
    name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "FeatureEntry"
  }
}
message_type {
  name: "Example" field { name: "features" number: 1 type: TYPE_MESSAGE type_name: "Features" }
}
"""


def open_sqlite(path: Path, split: Split) -> Lazy:
    """Open one split of an existing file, through a temporary copy if it is compressed (`.lzma`).

    `pixels` are float32 (n, 28, 28) and `label` int32 (n,). Other features are float32, int64 or
    objects (bytes), (n,) where a record holds one value and (n, values) where it holds more.

    Raises:
        InputError: The file is damaged, lacks a table or the split.
    """
    database = _Database(path)
    tables = {name for (name,) in database.rows("SELECT name FROM sqlite_master")}
    if missing := _TABLES - tables:
        raise InputError(f"{path} lacks the SQLite tables: {', '.join(sorted(missing))}")
    splits = {name for (name,) in database.rows("SELECT DISTINCT split_name FROM client_metadata")}
    stored = next((name for name in _SPLIT_NAMES[split] if name in splits), None)
    if stored is None:
        found = ", ".join(sorted(map(str, splits))) or "none"
        raise InputError(f"{path} has no {split} split: its splits are {found}")
    ids = database.rows(
        "SELECT DISTINCT client_id FROM client_metadata WHERE split_name = ?", stored
    )
    return Lazy((str(client_id) for (client_id,) in ids), partial(database.examples, stored))


class _Database:
    """A read-only SQLite file, with messages that name the file the user gave."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Held for its lifetime: the temporary file goes when the last database on it goes.
        self._unpacked = _unpacked(path) if path.suffix == ".lzma" else None
        file = self._unpacked.path if self._unpacked else path
        self._connection = PerProcess(partial(_connect, file))

    def rows(self, query: str, *values: str) -> list[Any]:
        try:
            return self._connection.get().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise InputError(f"{self._path} is not TFF's SQLite layout: {error}") from error

    def examples(self, split_name: str, client_id: str) -> Examples:
        select = "SELECT serialized_example_proto FROM examples"
        rows = self.rows(
            f"{select} WHERE client_id = ? AND split_name = ? ORDER BY rowid", client_id, split_name
        )
        # An empty client has features all the same: any other client's record tells which.
        records = rows or self.rows(f"{select} LIMIT 1")
        try:
            examples = _decode([blob for (blob,) in records])
        except (DecodeError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise InputError(
                f"{self._path}: client {client_id!r}: "
                "its records are not tf.train.Example messages with the same features"
            ) from error
        return {name: array[: len(rows)] for name, array in examples.items()}


def _connect(file: Path) -> sqlite3.Connection:
    # as_uri quotes '?' and '#'; any thread may read, since Python's SQLite serialises its calls.
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)


class _Unpacked:
    """A decompressed temporary file that goes away with this object."""

    def __init__(self, source: Path) -> None:
        try:
            handle, name = tempfile.mkstemp(prefix="fedferry-", suffix=".sqlite")
            self.path = Path(name)
            weakref.finalize(self, only_in, os.getpid(), partial(self.path.unlink, missing_ok=True))
            left = source.stat().st_size * _LARGEST_EXPANSION
            with os.fdopen(handle, "wb") as target, lzma.open(source) as compressed:
                while chunk := compressed.read(_CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        raise InputError(
                            f"{source} expands more than {_LARGEST_EXPANSION:,}-fold: no such data"
                        )
                    target.write(chunk)
        except (lzma.LZMAError, EOFError) as error:
            raise InputError(f"{source} is damaged or cut short: {error}") from error
        except OSError as error:
            raise InputError(
                f"cannot decompress {source} into {tempfile.gettempdir()} (set TMPDIR): "
                f"{error.strerror}"
            ) from error


_in_use: weakref.WeakValueDictionary[tuple[str, int, int], _Unpacked] = (
    weakref.WeakValueDictionary()
)


def _unpacked(source: Path) -> _Unpacked:
    """The decompressed file, shared by the train and the test population of one source."""
    status = source.stat()
    key = (str(source.resolve()), status.st_mtime_ns, status.st_size)
    unpacked = _in_use.get(key)
    if unpacked is None:
        unpacked = _in_use[key] = _Unpacked(source)
    return unpacked


def _decode(blobs: list[bytes]) -> Examples:
    """Serialized records to arrays with a leading dimension over the records."""
    records = [_record(blob) for blob in blobs]
    names = sorted(set[str]().union(*records))
    return {name: np.stack([record[name] for record in records]) for name in names}


def _record(blob: bytes) -> Examples:
    """One record's features, without the leading dimension."""
    record = {}
    for name, feature in _Example.FromString(blob).features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value)
        as_stored = (kind, _DTYPES[kind], () if len(values) == 1 else (len(values),))
        expected, dtype, shape = _SPECS.get(name, as_stored)
        if kind != expected:
            raise TypeError(f"{name} is a {kind}")
        record[name] = np.array(values, dtype).reshape(shape)
    return record


def _message_class() -> Any:
    file = text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto())
    # A pool of our own: TensorFlow, if it is loaded too, has these names in the default one.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _message_class()
