"""A run's rounds, a line each."""

import json
from pathlib import Path

import pytest

from server.history import History, read_history
from settings.errors import InputError


def grown(folder: Path, rounds: int, history: History | None = None) -> History:
    history = history or History(folder)
    for number in range(1, rounds + 1):
        history.add(json.dumps({"round": number, "loss": "Grüße"}))
    history.flush()
    return history


def numbers(folder: Path, history: History) -> list[int]:
    return [item["round"] for item in read_history(folder, history.mark)]


def test_a_mark_is_of_the_rounds_before_it(tmp_path: Path) -> None:
    history = grown(tmp_path, 2)
    mark = history.mark
    history.add('{"round": 3, "loss": NaN}')
    history.flush()
    assert read_history(tmp_path, mark) == [
        {"round": 1, "loss": "Grüße"},
        {"round": 2, "loss": "Grüße"},
    ]
    assert numbers(tmp_path, history) == [1, 2, 3]
    assert (tmp_path / "rounds.jsonl").read_text().count("\n") == 3


def test_a_resumed_run_goes_on_behind_its_mark(tmp_path: Path) -> None:
    mark = grown(tmp_path, 2).mark
    grown(tmp_path / "straight", 4)
    abandoned = History(tmp_path, mark["bytes"])
    abandoned.add('{"round": 3, "abandoned": true}')
    abandoned.flush()
    resumed = History(tmp_path, mark["bytes"])
    assert resumed.mark == mark
    for number in (3, 4):
        resumed.add(json.dumps({"round": number, "loss": "Grüße"}))
    resumed.flush()
    assert numbers(tmp_path, resumed) == [1, 2, 3, 4]
    files = [folder / "rounds.jsonl" for folder in (tmp_path, tmp_path / "straight")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # A run that begins anew, because it came to no checkpoint.
    assert numbers(tmp_path, grown(tmp_path, 1)) == [1]


def test_a_round_that_is_there_twice_is_as_it_was_last(tmp_path: Path) -> None:
    history = grown(tmp_path, 3)
    history.add('{"round": 2, "unsaved": "no space left"}')
    history.flush()
    second = read_history(tmp_path, history.mark)[1]
    assert second == {"round": 2, "unsaved": "no space left"}
    assert numbers(tmp_path, history) == [1, 2, 3]


def test_damage_is_seen(tmp_path: Path) -> None:
    mark = grown(tmp_path, 2).mark
    file = tmp_path / "rounds.jsonl"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole.replace(b"2", b"3"), b""):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"rounds.jsonl is damaged: its checksum"):
            read_history(tmp_path, mark)
    with pytest.raises(InputError, match=r"written by a fedferry that had no rounds.jsonl yet"):
        read_history(tmp_path, None)
    file.unlink()
    with pytest.raises(InputError, match=r"rounds.jsonl: cannot be read: No such file"):
        read_history(tmp_path, mark)
