"""`--data hf:NAME` on small folders with the columns of flwrlabs/femnist and flwrlabs/shakespeare."""

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from settings.errors import InputError
from tasks.catalogue import load_task
from tasks.data import open_population

datasets = pytest.importorskip("datasets")
pytest.importorskip("flwr_datasets")

TEXT = {
    "PLAY_HAMLET": "To be, or not to be, that is the question: " * 5,
    "PLAY_GHOST": "Mark me. " * 12,
}
CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def shakespeare(folder: Path, gap: bool = False) -> str:
    """Windows of 80 characters and the next one, as LEAF cuts them; with a gap: row 10 is missing."""
    rows: dict[str, list[str]] = {"character_id": [], "x": [], "y": []}
    for client, text in TEXT.items():
        for start in range(len(text) - 80):
            if not (gap and start == 10):
                window = (client, text[start : start + 80], text[start + 80])
                for name, value in zip(rows, window, strict=True):
                    rows[name].append(value)
    folder.mkdir()
    datasets.Dataset.from_dict(rows).to_csv(folder / "shakespeare.csv", index=False)
    return f"hf:{folder}"


def femnist(folder: Path, paper: int = 255) -> str:
    """Twenty drawings each of two writers: on paper, one dark square whose place tells the label."""
    rows: dict[str, list[Any]] = {"image": [], "writer_id": [], "hsf_id": [], "character": []}
    for writer in ("f0001_41", "f0000_14"):
        for label in range(0, 60, 3):
            image = np.full((28, 28), paper, dtype=np.uint8)
            image[label % 28, :] = 255 - paper
            for name, value in zip(rows, (image, writer, 0, label), strict=True):
                rows[name].append(value)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "writer_id": datasets.Value("string"),
            "hsf_id": datasets.Value("int64"),
            "character": datasets.ClassLabel(names=list(CLASSES)),
        }
    )
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return f"hf:{folder}"


def test_windows_become_the_text_they_were_cut_from(tmp_path: Path) -> None:
    data = shakespeare(tmp_path / "plays")
    train, test = open_population(data, "train"), open_population(data, "test")
    assert train.client_ids == test.client_ids == ["PLAY_GHOST", "PLAY_HAMLET"]
    for client, text in TEXT.items():
        [begun] = train.examples(client)["snippets"]
        [ended] = test.examples(client)["snippets"]
        # Nothing twice, nothing lost.
        assert (begun + ended).decode() == text
        assert len(ended) == -(-(len(text) - 80) // 10)


def test_a_gap_in_the_windows_begins_a_snippet(tmp_path: Path) -> None:
    text = TEXT["PLAY_HAMLET"]
    population = open_population(shakespeare(tmp_path / "plays", gap=True), "train")
    before, after = population.examples("PLAY_HAMLET")["snippets"]
    assert before.decode() == text[:90]
    assert text[11:].startswith(after.decode())


def test_the_text_task_trains_on_it(tmp_path: Path) -> None:
    task = load_task("shakespeare:sequence_length=20")
    population = task.population(shakespeare(tmp_path / "plays"), "train")
    prepared = task.prepare(population.examples("PLAY_HAMLET"))
    assert len(prepared) == len(b"".join(population.examples("PLAY_HAMLET")["snippets"])) // 21


@pytest.mark.parametrize("paper", [255, 0])
def test_pictures_have_dark_ink_on_light_paper(tmp_path: Path, paper: int) -> None:
    population = open_population(femnist(tmp_path / "letters", paper), "train")
    assert population.client_ids == ["f0000_14", "f0001_41"]
    examples = population.examples("f0000_14")
    assert examples["pixels"].shape == (18, 28, 28)
    assert examples["pixels"].dtype == np.float32
    assert examples["label"].dtype == np.int32
    assert examples["label"].tolist() == list(range(0, 54, 3))
    for image, label in zip(examples["pixels"], examples["label"], strict=True):
        assert (image[label % 28] == 0.0).all()
        assert image.sum() == 27 * 28
    test = open_population(femnist(tmp_path / "again", paper), "test").examples("f0000_14")
    assert test["label"].tolist() == [54, 57]


def test_digit_tasks_take_the_digits(tmp_path: Path) -> None:
    population = load_task("emnist_cnn").population(femnist(tmp_path / "letters"), "train")
    examples = population.examples("f0001_41")
    assert examples["label"].tolist() == [0, 3, 6, 9]
    assert load_task("emnist_cnn").prepare(examples).inputs.shape == (4, 28, 28, 1)


def test_other_columns_and_other_names(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_dict({"a": [1]}).to_csv(tmp_path / "other/a.csv", index=False)
    with pytest.raises(InputError, match="has the columns a; known are: image, writer_id"):
        open_population(f"hf:{tmp_path}/other", "train")
    with pytest.raises(InputError, match=r"hf:/no/such/folder cannot be loaded: .*/no/such/folder"):
        open_population("hf:/no/such/folder", "train")
