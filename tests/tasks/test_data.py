"""TFF's HDF5 files, real ones and hand-made ones, good and bad."""

import gc
import os
import re
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest

from settings.errors import InputError
from tasks.data import Examples, InMemory, Population, open_population

Split = Literal["train", "test"]
WORDS = [b"To be,\nor not to be", b"", b"Ay, there's the rub"]


def pixels(count: int) -> Any:
    return np.random.default_rng(count).random((count, 28, 28), dtype=np.float32)


def write_hdf5(path: Path, clients: dict[str, Examples]) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("examples")
        for client_id, examples in clients.items():
            for name, array in examples.items():
                group.create_dataset(f"{client_id}/{name}", data=array)
    return path


@pytest.fixture
def words(tmp_path: Path) -> Path:
    clients = {
        "B_LEAR": {"snippets": np.array(WORDS)},
        "A_FOOL": {"snippets": np.array([b"Nuncle"])},
    }
    write_hdf5(tmp_path / "words_test.h5", {"A_FOOL": {"snippets": np.array([b"Pray"])}})
    return write_hdf5(tmp_path / "words_train.h5", clients)


def test_hdf5_gives_sorted_clients_and_their_arrays(tmp_path: Path) -> None:
    digits = {"label": np.array([3, 1], np.int32), "pixels": pixels(2)}
    path = write_hdf5(tmp_path / "digits.h5", {"f2": digits, "f1": digits})
    population = open_population(str(path), "train")
    assert population.client_ids == ["f1", "f2"]
    examples = population.examples("f2")
    assert list(examples) == list(digits)
    for name, array in digits.items():
        np.testing.assert_array_equal(examples[name], array, strict=True)


def test_hdf5_strings_are_bytes_objects_without_the_padding(tmp_path: Path) -> None:
    variable = np.array([b"a", b"longer"], dtype=h5py.string_dtype("ascii"))
    text = np.array(["plain", "tschüß"], dtype=h5py.string_dtype())
    fixed = np.array([b"a\0", b"longer"])
    path = write_hdf5(tmp_path / "x.h5", {"c": {"f": fixed, "t": text, "v": variable}})
    examples = open_population(path, "train").examples("c")
    assert examples["f"].tolist() == examples["v"].tolist() == [b"a", b"longer"]
    assert examples["t"].tolist() == [b"plain", "tschüß".encode()]
    assert {array.dtype for array in examples.values()} == {np.dtype(object)}


@pytest.mark.parametrize("given", ["train", "test"])
def test_either_sibling_opens_either_split(words: Path, given: str) -> None:
    path = words.with_name(f"words_{given}.h5")
    assert open_population(path, "train").client_ids == ["A_FOOL", "B_LEAR"]
    assert open_population(path, "test").examples("A_FOOL")["snippets"].tolist() == [b"Pray"]


def test_a_client_may_have_no_examples(tmp_path: Path) -> None:
    none = {"label": np.zeros(0, np.int32), "snippets": np.zeros(0, "S3")}
    examples = open_population(write_hdf5(tmp_path / "x.h5", {"c": none}), "train").examples("c")
    assert examples["label"].shape == examples["snippets"].shape == (0,)


def test_an_unknown_client_names_the_nearest(words: Path) -> None:
    with pytest.raises(InputError, match=r"unknown client id 'B_LEER'.*B_LEAR"):
        open_population(words, "train").examples("B_LEER")
    with pytest.raises(InputError, match="unknown client id"):
        open_population(words, "train").examples("A_FOOL/snippets")


def test_opening_reads_no_examples(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = h5py.Dataset.__getitem__

    def counted(dataset: h5py.Dataset, *args: Any, **kwargs: Any) -> Any:
        read.append(dataset.name)
        return original(dataset, *args, **kwargs)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    population = open_population(words, "train")
    assert read == []
    population.examples("A_FOOL")
    assert read == ["/examples/A_FOOL/snippets"]


def test_the_file_is_closed_with_its_population(words: Path) -> None:
    population = open_population(words, "train")
    population.examples("A_FOOL")
    del population
    gc.collect()
    assert not open_files(words)


def open_files(path: Path) -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return [link for link in links if Path(link).exists() and Path(link).samefile(path)]


def write_bad(tmp_path: Path, fault: str) -> Path:
    """A file `bad.h5` with one fault."""
    path = tmp_path / "bad.h5"
    if fault == "not a file":
        path.mkdir()
    elif fault == "text":
        path.write_text("examples")
    elif fault == "empty":
        path.touch()
    elif fault == "truncated":
        whole = write_hdf5(path, {"c": {"pixels": pixels(9)}}).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif fault != "missing":
        write_hdf5(tmp_path / "other.h5", {"c": {"label": np.zeros(2)}})
        with h5py.File(path, "w") as file:
            if fault == "dataset":
                file["examples"] = np.zeros(3)
            elif fault == "soft link":
                file["clients/c/label"] = np.zeros(3)
                file["examples"] = h5py.SoftLink("/clients")
            elif fault == "external link":
                file["examples"] = h5py.ExternalLink("other.h5", "/examples")
            else:
                file["clients"] = np.zeros(3)
    return path


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "no such file"),
        ("not a file", "a folder, not a file"),
        ("text", "damaged, or not an HDF5 or SQLite file"),
        ("empty", "damaged, or not an HDF5 or SQLite file"),
        ("truncated", "truncated file"),
        ("no examples", "/examples must be a Group and is missing"),
        ("dataset", "/examples must be a Group and is a Dataset"),
        ("soft link", "/examples must be a Group and is a SoftLink"),
        ("external link", "/examples must be a Group and is a ExternalLink"),
    ],
)
def test_a_bad_hdf5_file_is_named_in_one_line(tmp_path: Path, fault: str, said: str) -> None:
    path = write_bad(tmp_path, fault)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        open_population(path, "train")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_clients_are_named(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "x.h5", {"good": {"label": np.zeros(2)}})
    with h5py.File(path, "a") as file:
        file["examples/linked"] = h5py.SoftLink("/examples/good")
        file["examples/outside/label"] = h5py.ExternalLink("y.h5", "/label")
        file["examples/array"] = np.zeros(2)
        file["examples/scalar/label"] = 3
        file["examples/uneven/a"] = np.zeros(2)
        file["examples/uneven/b"] = np.zeros(3)
        file["examples/pairs/label"] = np.zeros(2, "i4,f4")
        raw = [(str(tmp_path / "passwords"), 0, 16)]
        file["examples"].create_dataset("raw/label", shape=(2,), dtype="f8", external=raw)
    population = open_population(path, "train")
    assert population.examples("good")["label"].shape == (2,)
    said = {
        "linked": "/examples/linked must be a Group and is a SoftLink",
        "outside": "/examples/outside/label must be a Dataset and is a ExternalLink",
        "array": "/examples/array must be a Group and is a Dataset",
        "scalar": "client 'scalar': features must be equally long",
        "uneven": r"not a \(2,\), b \(3,\)",
        "pairs": "/examples/pairs/label must hold numbers or strings",
        "raw": "/examples/raw/label must hold numbers or strings, in the file itself",
    }
    for client_id, message in said.items():
        with pytest.raises(InputError, match=message):
            population.examples(client_id)


def test_damaged_examples_are_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        packed = file.create_dataset("examples/c/label", data=np.arange(999), compression="gzip")
        offset = packed.id.get_chunk_info(0).byte_offset
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * 40)
    with pytest.raises(InputError, match="is damaged") as caught:
        open_population(path, "train").examples("c")
    assert str(path) in str(caught.value)


def test_a_missing_sibling_names_both_paths(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "mine_train.h5", {"c": {"label": np.zeros(2)}})
    assert open_population(path, "train").client_ids == ["c"]
    with pytest.raises(InputError, match=r"mine_train\.h5 .*mine_test\.h5"):
        open_population(path, "test")


def test_a_file_without_a_split_in_its_name_is_for_training(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "mine_training.h5", {"c": {"label": np.zeros(2)}})
    assert open_population(path, "train").client_ids == ["c"]
    with pytest.raises(InputError, match=r"mine_training_train\.h5 .*mine_training_test\.h5"):
        open_population(path, "test")


def test_an_unknown_split(words: Path) -> None:
    with pytest.raises(InputError, match="unknown split 'tests': choose from train, test"):
        open_population(words, "tests")  # type: ignore[arg-type]


# --- in memory


def test_in_memory() -> None:
    population: Population = InMemory({"b": {"x": np.zeros(2)}, "a": {}})
    assert population.client_ids == ["a", "b"]
    assert population.examples("b")["x"].shape == (2,)
    assert population.examples("a") == {}
    with pytest.raises(InputError, match="unknown client id 'c': choose from a, b"):
        population.examples("c")
    with pytest.raises(InputError, match="client 'a': features must be equally long"):
        InMemory({"a": {"x": np.zeros(2), "y": np.zeros(3)}}).examples("a")


@pytest.mark.parametrize(("split", "snippets"), [("train", 16_068), ("test", 2_356)])
def test_all_of_tffs_shakespeare(split: Split, snippets: int, tff_data: Path) -> None:
    population = open_population(tff_data / "shakespeare_train.h5", split)
    assert len(population.client_ids) == 715
    clients = [population.examples(client_id) for client_id in population.client_ids]
    assert {array.dtype for client in clients for array in client.values()} == {np.dtype(object)}
    assert sum(len(client["snippets"]) for client in clients) == snippets
    assert all(type(text) is bytes for client in clients for text in client["snippets"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_writers(split: Split, tff_data: Path) -> None:
    population = open_population(tff_data / "digits_by_writer_test.h5", split)
    assert len(population.client_ids) == 295
    for client_id in population.client_ids:
        examples = population.examples(client_id)
        assert list(examples) == ["label", "pixels"]
        assert examples["label"].dtype == np.int32
        assert examples["pixels"].dtype == np.float32
        assert examples["pixels"].shape == (len(examples["label"]), 28, 28)
