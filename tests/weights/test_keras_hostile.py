"""Files that are not what they seem: each an error of one line, and nothing written."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from settings.errors import InputError
from weights.keras import load_model, save_model

KERAS2 = Path(__file__).parents[1] / "data/keras2"


def damaged(path: Path, change: Callable[[h5py.File], object]) -> Path:
    """A copy of the convolution model in `path`, changed."""
    path.write_bytes((KERAS2 / "conv.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def truncate(path: Path) -> None:
    path.write_bytes((KERAS2 / "conv.h5").read_bytes()[:20_000])


def with_other(make: Callable[[h5py.File, str], Any]) -> Callable[[Path], object]:
    """Replaces the first kernel by what `make` puts under its name."""

    def change(file: h5py.File) -> None:
        name = "model_weights/conv2d/conv2d/kernel:0"
        del file[name]
        make(file, name)

    return lambda path: damaged(path, change)


def virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
    layout[...] = h5py.VirtualSource("/etc/other.h5", "x", (3, 3, 3, 4))
    file.create_virtual_dataset(name, layout)


def config(**options: Any) -> Callable[[Path], object]:
    """Changes options of the first layer in the config."""

    def change(file: h5py.File) -> None:
        parsed = json.loads(file.attrs["model_config"])
        layer = parsed["config"]["layers"][1]
        layer.update({key: options.pop(key) for key in ("class_name",) if key in options})
        layer["config"].update(options)
        file.attrs["model_config"] = json.dumps(parsed)

    return lambda path: damaged(path, change)


def attribute(name: str, value: Any) -> Callable[[Path], object]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return lambda path: damaged(path, change)


def archive(**members: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name.replace("_", "."), data)

    return write


EMPTY = {"metadata_json": b"{}", "model_weights_h5": b"no"}

HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "not a readable HDF5 file: .*truncated"),
    "not HDF5": (lambda path: path.write_text("hello"), "not a readable HDF5 file"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable HDF5 file"),
    "a folder": (lambda path: path.mkdir(), "a folder, not a file"),
    "missing": (lambda path: None, "no such file"),
    "no config": (attribute("model_config", None), "holds weights only"),
    "config is no JSON": (attribute("model_config", "{"), "not JSON"),
    "config is deep": (attribute("model_config", "[" * 60_000), "not JSON"),
    "config is deeper": (attribute("model_config", "[" * 50 + "]" * 50), "more than 40 deep"),
    "config is a list": (attribute("model_config", "[]"), "list for an object"),
    "config is numbers": (attribute("model_config", [1, 2]), "not text"),
    "config is two": (attribute("model_config", ["a", "b"]), "2 texts, not one"),
    "another model": (attribute("model_config", '{"class_name": "Evil"}'), "unknown model class"),
    "no layers": (
        attribute("model_config", '{"class_name": "Sequential", "config": []}'),
        "no layers",
    ),
    "strange version": (attribute("keras_version", "x"), "'x' is no version of Keras"),
    "unknown layer": (config(class_name="Lambda"), "'conv2d': unknown layer class 'Lambda'"),
    "custom layer": (config(name=3), "without a class or a name"),
    "unknown activation": (config(activation="evil"), "'conv2d': unknown activation 'evil'"),
    "channels first": (config(data_format="channels_first"), "'channels_first' is not supported"),
    "regularizer": (config(kernel_regularizer={"l2": 1}), "'conv2d': not supported: kernel_regul"),
    "half precision": (config(dtype="mixed_float16"), "computes in mixed_float16"),
    "enormous": (config(filters=2**30), "parameters, more than the"),
    "absurd": (config(filters=10**30), "'conv2d': filters is 1.*0, not a size"),
    "overflowing": (config(filters=2**31 - 1, kernel_size=[2**31 - 1] * 2), "'conv2d'"),
    "negative": (config(filters=-3), "filters is -3, not a size"),
    "dotted name": (config(name="a.b"), "the name cannot be used"),
    "reserved name": (config(name="forward"), "the name cannot be used"),
    "wrong shape": (
        with_other(lambda file, name: file.create_dataset(name, (3, 3, 4, 4), "f4")),
        r"'conv2d': kernel has shape \(3, 3, 4, 4\), the model needs \(3, 3, 3, 4\)",
    ),
    "claimed size": (
        with_other(lambda file, name: file.create_dataset(name, (2**40,), "f4", chunks=(1024,))),
        "'conv2d': kernel has shape",
    ),
    "wrong dtype": (
        with_other(lambda file, name: file.create_dataset(name, (3, 3, 3, 4), "f8")),
        "'conv2d': kernel is float64",
    ),
    "missing array": (
        with_other(lambda file, name: None),
        "layer 'conv2d' lacks its conv2d/kernel",
    ),
    "a group for an array": (
        with_other(lambda file, name: file.create_group(name)),
        "layer 'conv2d' lacks its conv2d/kernel",
    ),
    "soft link": (
        with_other(lambda file, name: file.__setitem__(name, h5py.SoftLink("/model_weights"))),
        "kernel:0 is a link to elsewhere",
    ),
    "external link": (
        with_other(
            lambda file, name: file.__setitem__(name, h5py.ExternalLink("/etc/passwd", "/x"))
        ),
        "kernel:0 is a link to elsewhere",
    ),
    "external storage": (
        with_other(
            lambda file, name: file.create_dataset(
                name, (3, 3, 3, 4), "f4", external=[("/etc/passwd", 0, 432)]
            )
        ),
        "kernel:0 has its data in other files",
    ),
    "virtual dataset": (with_other(virtual), "kernel:0 has its data in other files"),
    "endless groups": (
        lambda path: damaged(path, lambda file: file.__setitem__("loop", file["/"])),
        "more groups than a Keras file has",
    ),
    "zip bomb": (
        archive(config_json=b" " * 50_000_000, **EMPTY),
        "unpacks to 50,000,0.. bytes, too many",
    ),
    "zip of something": (archive(evil_txt=b"x"), "without config.json is no Keras file"),
    "zip without weights": (
        archive(config_json=b"{}", metadata_json=b"{}"),
        "without model.weights.h5",
    ),
    "zip with a bad weights file": (archive(config_json=b"{}", **EMPTY), "not a readable HDF5"),
    "zip cut short": (
        lambda path: path.write_bytes((KERAS2 / "conv.keras").read_bytes()[:5000]),
        "damaged zip archive",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, tmp_path: Path) -> None:
    make, message = HOSTILE[case]
    path = tmp_path / "model.h5"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InputError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        save_model({}, path, path)
    assert before is None or path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == (case != "missing")
