"""TFF's files, real ones and hand-made ones, good and bad."""

import gc
import lzma
import multiprocessing
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest

from settings.errors import InputError
from tasks.data import Examples, InMemory, Population, open_population

Split = Literal["train", "test"]
WORDS = [b"To be,\nor not to be", b"", b"Ay, there's the rub"]


def same(one: Examples, other: Examples) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and bool((one[name] == other[name]).all())
        for name in one
    )


def real(name: str) -> Path:
    folder = os.environ.get("FEDFERRY_DATA")
    if not folder:
        pytest.skip("FEDFERRY_DATA is not set: it names the folder with TFF's files")
    return Path(folder, name)


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


# --- HDF5


def test_hdf5_gives_sorted_clients_and_their_arrays(tmp_path: Path) -> None:
    digits = {"label": np.array([3, 1], np.int32), "pixels": pixels(2)}
    path = write_hdf5(tmp_path / "digits.h5", {"f2": digits, "f1": digits})
    population = open_population(str(path), "train")
    assert population.client_ids == ["f1", "f2"]
    assert same(population.examples("f2"), digits)


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
        ("not a file", "is a folder"),
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


# --- SQLite


def message(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field, written by hand so as not to test our message by itself."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    low = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(part | 128 for part in low[:-1]), low[-1]])


def record(**features: Any) -> bytes:
    """A serialized tf.train.Example: lists of bytes, of ints or a float array."""
    content = b""
    for name, values in features.items():
        if isinstance(values, np.ndarray):
            feature = message(2, message(1, values.astype("<f4").tobytes()))
        elif isinstance(values[0], bytes):
            feature = message(1, b"".join(message(1, value) for value in values))
        else:
            feature = message(3, message(1, b"".join(map(varint, values))))
        content += message(1, message(1, name.encode()) + message(2, feature))
    return message(1, content)


def write_sqlite(path: Path, rows: list[tuple[str, str, Any]], *, empty: str = "") -> Path:
    """`rows` of split, client and record, in the file's order; `empty`: a training client without."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            "CREATE TABLE examples (split_name, client_id, serialized_example_proto)"
        )
        connection.execute("CREATE TABLE client_metadata (client_id, split_name, num_examples)")
        connection.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
        clients = {(client_id, split) for split, client_id, _ in rows}
        clients |= {(empty, "train")} if empty else set()
        connection.executemany("INSERT INTO client_metadata VALUES (?, ?, 0)", sorted(clients))
    connection.close()
    return path


def compress(path: Path) -> Path:
    packed = path.with_name(path.name + ".lzma")
    packed.write_bytes(lzma.compress(path.read_bytes(), format=lzma.FORMAT_ALONE))
    return packed


@pytest.fixture
def database(tmp_path: Path) -> Path:
    rows = [
        ("train", "b", record(snippets=[b"second client"])),
        ("test", "a", record(snippets=[b"held out"])),
        *(("train", "a", record(snippets=[word])) for word in WORDS),
        ("train", "a", record(snippets=[b"nul\0"])),
    ]
    return write_sqlite(tmp_path / "50% off? #1.sqlite", rows, empty="c")


@pytest.mark.parametrize("packed", [False, True])
def test_sqlite_gives_both_splits_in_order(database: Path, packed: bool) -> None:
    path = compress(database) if packed else database
    train, test = open_population(path, "train"), open_population(path, "test")
    assert train.client_ids == ["a", "b", "c"]
    assert train.examples("a")["snippets"].tolist() == [*WORDS, b"nul\0"]
    assert train.examples("c")["snippets"].shape == (0,)
    assert test.client_ids == ["a"]
    assert test.examples("a")["snippets"].tolist() == [b"held out"]
    with pytest.raises(InputError, match="unknown client id 'd': choose from a, b, c"):
        train.examples("d")


def test_sqlite_is_known_by_its_content_too(database: Path) -> None:
    assert open_population(database.rename(database.with_suffix(".db")), "test").client_ids == ["a"]


def test_sqlite_digits_and_other_features(tmp_path: Path) -> None:
    values = pixels(2)
    rows = [
        ("digits_only_train", "w", record(label=[label], pixels=image.ravel(), ids=[-1, 2**40]))
        for label, image in zip([7, 300], values, strict=True)
    ]
    path = write_sqlite(tmp_path / "x.sqlite", rows)
    expected = {
        "ids": np.array([[-1, 2**40]] * 2, np.int64),
        "label": np.array([7, 300], np.int32),
        "pixels": values,
    }
    assert same(open_population(path, "train").examples("w"), expected)


@pytest.mark.parametrize(
    "records",
    [
        [b"\xff\xff"],
        ["text"],
        [record(pixels=np.zeros(783))],
        [record(label=[2**31])],
        [record(label=[b"3"])],
        [record(ids=[1, 2]), record(ids=[1, 2, 3])],
        [record(label=[1]), record(ids=[1])],
    ],
)
def test_bad_sqlite_records_are_an_input_error(tmp_path: Path, records: list[Any]) -> None:
    path = write_sqlite(tmp_path / "x.sqlite", [("train", "w", each) for each in records])
    with pytest.raises(InputError, match="client 'w': its records are not") as caught:
        open_population(path, "train").examples("w")
    assert str(path) in str(caught.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def corrupt(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(60) + content[120:])


def not_lzma(path: Path) -> None:
    path.write_text("nothing compressed")


def bomb(path: Path) -> None:
    path.write_bytes(lzma.compress(bytes(1 << 23), format=lzma.FORMAT_ALONE))


def text_within(path: Path) -> None:
    path.write_bytes(lzma.compress(b"words", format=lzma.FORMAT_ALONE))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, "damaged or cut short"),
        (corrupt, "damaged or cut short"),
        (not_lzma, "damaged or cut short"),
        (bomb, "expands more than 1,000-fold"),
        (text_within, "file is not a database"),
    ],
)
def test_bad_lzma(
    database: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], said: str
) -> None:
    packed = compress(database)
    spoil(packed)
    room = packed.parent / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    with pytest.raises(InputError, match=said) as caught:
        open_population(packed, "train")
    assert str(packed) in str(caught.value)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()
    assert not list(room.iterdir())


def test_bad_sqlite(tmp_path: Path, database: Path) -> None:
    with pytest.raises(InputError, match="has no test split: its splits are train"):
        open_population(write_sqlite(tmp_path / "x.sqlite", [("train", "w", b"")]), "test")
    for table in ("client_metadata", "examples"):
        connection = sqlite3.connect(database)
        connection.execute(f"ALTER TABLE {table} RENAME TO no_{table}")
        connection.close()
        with pytest.raises(InputError, match=f"lacks the SQLite tables: .*{table}") as caught:
            open_population(database, "train")
        assert str(database) in str(caught.value)
    (tmp_path / "words.sqlite").write_text("words")
    with pytest.raises(InputError, match="file is not a database"):
        open_population(tmp_path / "words.sqlite", "train")


def test_the_decompressed_file_is_shared_and_removed_with_the_last_population(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = compress(database)
    room = packed.parent / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    train = open_population(packed, "train")
    test = open_population(packed, "test")
    assert len(list(room.iterdir())) == 1
    del train
    assert test.examples("a")["snippets"].tolist() == [b"held out"]
    in_a_child(test, drop=True)
    assert len(list(room.iterdir())) == 1
    del test
    gc.collect()
    assert not list(room.iterdir())


# --- other processes


def in_a_child(population: Population, *, drop: bool = False) -> None:
    """Read every client here and in a forked child, which must see the same."""
    expected = [population.examples(client_id) for client_id in population.client_ids]
    kept = [population]

    def check() -> None:
        for client_id, examples in zip(population.client_ids, expected, strict=True):
            assert same(kept[0].examples(client_id), examples)
        if drop:
            kept.clear()

    child = multiprocessing.get_context("fork").Process(target=check)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert same(population.examples(population.client_ids[0]), expected[0])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_populations_survive_a_fork(words: Path, database: Path) -> None:
    in_a_child(open_population(words, "train"))
    in_a_child(open_population(database, "train"))


# --- TFF's own files


@pytest.mark.parametrize(("split", "snippets"), [("train", 16_068), ("test", 2_356)])
def test_all_of_tffs_shakespeare(split: Split, snippets: int) -> None:
    population = open_population(real("shakespeare_train.h5"), split)
    assert len(population.client_ids) == 715
    clients = [population.examples(client_id) for client_id in population.client_ids]
    assert {array.dtype for client in clients for array in client.values()} == {np.dtype(object)}
    assert sum(len(client["snippets"]) for client in clients) == snippets
    assert all(type(text) is bytes for client in clients for text in client["snippets"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_writers(split: Split) -> None:
    population = open_population(real("digits_by_writer_test.h5"), split)
    assert len(population.client_ids) == 295
    for client_id in population.client_ids:
        examples = population.examples(client_id)
        assert list(examples) == ["label", "pixels"]
        assert examples["label"].dtype == np.int32
        assert examples["pixels"].dtype == np.float32
        assert examples["pixels"].shape == (len(examples["label"]), 28, 28)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("hdf5", "sqlite", "clients"),
    [
        ("shakespeare_train.h5", "shakespeare_15clients.sqlite.lzma", 15),
        ("digits_by_writer_train.h5", "digits_10writers.sqlite.lzma", 10),
    ],
)
def test_sqlite_equals_hdf5(hdf5: str, sqlite: str, clients: int, split: Split) -> None:
    one, other = open_population(real(hdf5), split), open_population(real(sqlite), split)
    assert len(other.client_ids) == clients
    assert all(same(one.examples(each), other.examples(each)) for each in other.client_ids)
