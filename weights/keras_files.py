"""The kinds of file that Keras keeps weights in, and where in them each array lies.

- HDF5 of Keras 1 and 2, TF-Keras and Keras 3's legacy saving: groups named by layer, with the
  arrays' names in attributes; in `model_weights` beside a `model_config`, or alone at the root.
- HDF5 of Keras 3, `.weights.h5`: `layers/<class in snake case>[_n]/vars/<i>`, the arrays of a
  recurrent layer under `cell/vars`.
- `.keras`: a zip archive of such a file, the config and the version.
"""

import io
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py

from settings.errors import InputError, counted
from weights.files import check_file, replacing
from weights.hdf5 import contents, names, open_hdf5, text
from weights.keras_arrays import Variable
from weights.keras_config import Config, normalised, parsed

WEIGHTS = "model.weights.h5"
# Keras does not compress, so an archive that unpacks to many times its size is no model.
MAX_EXPANSION = 20
MIN_ALLOWANCE = 16 * 2**20

# What a Keras 3 file holds besides layers: the optimizer's and the metrics' variables.
DROPPED = re.compile(
    r"(optimizer|optimizer_weights|vars|_?\w*metrics?)/.*|.*/seed_generator/vars/\d+"
)
ARRAY = re.compile(
    r"(?:layers|_layer_checkpoint_dependencies)/(?P<kind>[^/]+?)(?:_(?P<number>\d{1,9}))?"
    r"(?:/cell)?/vars/(?P<index>\d{1,9})"
)

Found = dict[tuple[str, str], h5py.Dataset]
"""Datasets by layer and Keras's name of the array."""


@dataclass
class KerasFile:
    """An open file of any kind."""

    where: str
    """Its name, for errors."""
    config: Config | None
    """The model in the normal form, None for weights only."""
    hdf5: h5py.File


@contextmanager
def opened(path: Path) -> Iterator[KerasFile]:
    """Opens a file of any kind for reading.

    Raises:
        InputError: There is none, or it is none of Keras's.
    """
    members = _members(path)
    source = io.BytesIO(members[WEIGHTS]) if members else str(path)
    with open_hdf5(source, str(path)) as hdf5:
        yield _described(path, members, hdf5)


@contextmanager
def copied(template: Path, path: Path) -> Iterator[KerasFile]:
    """Opens a copy of `template` for writing; it takes `path`'s place at the end, if all went well.

    Raises:
        InputError: The template is no file of Keras's, or `path` cannot be written.
    """
    members = _members(template)
    with replacing(path) as copy:
        if not members:
            shutil.copyfile(template, copy)
        weights = io.BytesIO(members[WEIGHTS]) if members else str(copy)
        with open_hdf5(weights, str(template), "r+") as hdf5:
            yield _described(template, members, hdf5)
        if isinstance(weights, io.BytesIO):
            with zipfile.ZipFile(copy, "w") as archive:
                for name, data in {**members, WEIGHTS: weights.getvalue()}.items():
                    archive.writestr(zipfile.ZipInfo(name), data)


def located(file: KerasFile, wanted: Sequence[Variable]) -> list[h5py.Dataset]:
    """Each variable's dataset, in order.

    Raises:
        InputError: One is missing, or the file has one that the model has no place for.
    """
    table = contents(file.hdf5, file.where)
    root = "model_weights" if "model_weights" in table else ""
    layers = names(table[root], "layer_names", file.where)
    found = (
        _by_class(table, wanted, file.where)
        if layers is None
        else _by_name(table, root, layers, file.where)
    )
    keys = [(variable.layer, variable.name) for variable in wanted]
    for layer, name in found:
        if (layer, name) not in keys:
            raise InputError(f"{file.where}: layer {layer!r} has {name}, which the model has not")
    for layer, name in keys:
        if (layer, name) not in found:
            raise InputError(f"{file.where}: layer {layer!r} lacks {name}, which the model has")
    return [found[key] for key in keys]


def _by_name(
    table: dict[str, h5py.Group | h5py.Dataset], root: str, layers: list[str], where: str
) -> Found:
    """The arrays of a file whose groups are named by layer."""
    found: Found = {}
    for layer in layers:
        group = f"{root}/{layer}".lstrip("/")
        listed = names(table[group], "weight_names", where) if group in table else None
        if listed is None:
            raise InputError(f"{where}: layer {layer!r} is listed, but not in the file")
        for full_name in listed:
            # gru_1/gru_cell/kernel:0 of Keras 2, sequential/gru/gru_cell/kernel of Keras 3
            name = full_name.rpartition("/")[2].partition(":")[0]
            dataset = table.get(f"{group}/{full_name}")
            if not isinstance(dataset, h5py.Dataset) or (layer, name) in found:
                raise InputError(f"{where}: layer {layer!r} lacks its {full_name}, or has it twice")
            found[layer, name] = dataset
    return found


def _by_class(
    table: dict[str, h5py.Group | h5py.Dataset], wanted: Sequence[Variable], where: str
) -> Found:
    """The arrays of a Keras 3 file, which numbers the layers of each class in the model's order."""
    groups: dict[str, dict[int, dict[int, h5py.Dataset]]] = {}
    for path, item in table.items():
        path = path.replace("\\", "/")  # as Keras on Windows used to write it
        match = ARRAY.fullmatch(path)
        if match and isinstance(item, h5py.Dataset):
            numbered = groups.setdefault(match["kind"], {}).setdefault(
                int(match["number"] or 0), {}
            )
            numbered[int(match["index"])] = item
        elif isinstance(item, h5py.Dataset) and not DROPPED.fullmatch(path):
            raise InputError(f"{where}: {path} is not where Keras keeps a layer's array")
    models: dict[str, dict[str, list[str]]] = {}
    for variable in wanted:
        layers = models.setdefault(_snake_case(variable.class_name), {})
        layers.setdefault(variable.layer, []).append(variable.name)
    found: Found = {}
    for kind in models | groups:
        numbered, layers = groups.get(kind, {}), models.get(kind, {})
        if len(numbered) != len(layers):
            raise InputError(
                f"{where}: has arrays of {counted(len(numbered), f'{kind} layer')}, the model has "
                f"{len(layers)} ({', '.join(layers) or 'none'})"
            )
        for number, layer in zip(sorted(numbered), layers, strict=True):
            arrays, expected = numbered[number], layers[layer]
            if arrays.keys() != set(range(len(expected))):
                raise InputError(
                    f"{where}: layer {layer!r} has {counted(len(arrays), 'array')}, the model needs "
                    f"{len(expected)} ({', '.join(expected)})"
                )
            found.update({(layer, name): arrays[i] for i, name in enumerate(expected)})
    return found


def _snake_case(name: str) -> str:
    """As keras/src/utils/naming.py has it: MaxPooling2D becomes max_pooling2d."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _described(path: Path, members: dict[str, bytes], hdf5: h5py.File) -> KerasFile:
    """The open file with its model in the normal form."""
    where = str(path)
    if members:
        version = parsed(members["metadata.json"], where).get("keras_version")
        return KerasFile(where, normalised(members["config.json"], where, version), hdf5)
    config = text(hdf5, "model_config", where)
    version = text(hdf5, "keras_version", where)
    return KerasFile(where, None if config is None else normalised(config, where, version), hdf5)


def _members(path: Path) -> dict[str, bytes]:
    """The members of a `.keras` archive by name, none for another file.

    Nothing is unpacked to disk. Raises an InputError if it is damaged, a bomb, or not Keras's.
    """
    check_file(path)
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return {}
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > MIN_ALLOWANCE + MAX_EXPANSION * path.stat().st_size:
                raise InputError(f"{path}: unpacks to {size:,} bytes, too many for its own size")
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except (
        OSError,
        zipfile.BadZipFile,
        RuntimeError,
        NotImplementedError,
        EOFError,
        zlib.error,
    ) as error:
        raise InputError(f"{path}: a damaged zip archive: {error}") from error
    for name in ("config.json", "metadata.json", WEIGHTS):
        if name not in members:
            raise InputError(f"{path}: a zip archive without {name} is no Keras file")
    return members
