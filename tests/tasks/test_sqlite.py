"""TFF's SQLite files, packed or not: hand-made ones, good and bad, and its own against HDF5."""

import gc
import lzma
import multiprocessing
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from settings.errors import InputError
from tasks.data import Examples, Population, open_population

Split = Literal["train", "test"]
WORDS = [b"To be,\nor not to be", b"", b"Ay, there's the rub"]


def same(one: Examples, other: Examples) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and bool((one[name] == other[name]).all())
        for name in one
    )


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
    values: Any = np.random.default_rng(2).random((2, 28, 28), dtype=np.float32)
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
def test_populations_survive_a_fork(writers: str, database: Path) -> None:
    in_a_child(open_population(writers, "train"))
    in_a_child(open_population(database, "train"))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("hdf5", "sqlite", "clients"),
    [
        ("shakespeare_train.h5", "shakespeare_15clients.sqlite.lzma", 15),
        ("digits_by_writer_train.h5", "digits_10writers.sqlite.lzma", 10),
    ],
)
def test_sqlite_equals_hdf5(
    hdf5: str, sqlite: str, clients: int, split: Split, tff_data: Path
) -> None:
    one, other = open_population(tff_data / hdf5, split), open_population(tff_data / sqlite, split)
    assert len(other.client_ids) == clients
    assert all(same(one.examples(each), other.examples(each)) for each in other.client_ids)
