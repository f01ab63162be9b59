"""How run configs are read and `flwr` is called."""

import json
from pathlib import Path

import pytest

from deploy import flower
from deploy.flower import read_settings
from deploy.loopback import Loopback
from settings.errors import InputError


def test_words_become_a_run_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["rounds=3", "cohort=4", "shuffle=false", "over-select=1.5", "data=a_train.h5"]
    config = read_settings([*words, "client-optimizer=sgd:lr=0.1,momentum=0.9"])
    assert (config["rounds"], config["cohort"], config["shuffle"]) == (3, "4", False)
    assert config["over-select"] == 1.5
    assert config["client-optimizer"] == "sgd:lr=0.1,momentum=0.9"
    assert config["data"] == str(tmp_path / "a_train.h5"), "the processes run elsewhere"
    assert read_settings([])["data"] == "sample"
    assert read_settings(["save="])["save"] == "", "not given"


@pytest.mark.parametrize(
    "word", ["data=sample", "data=tff", "data=hf:flwrlabs/femnist", "init=dickens"]
)
def test_names_of_data_and_checkpoints_are_no_paths(word: str) -> None:
    key, _, name = word.partition("=")
    assert read_settings([word])[key] == name


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tsk=emnist_lr", "unknown setting 'tsk': the nearest are task"),
        ("rounds=many", "rounds must be a number, not 'many'"),
        ("shuffle=maybe", "setting shuffle must be bool, not 'maybe'"),
        ("rounds=", "^rounds must be a number, not ''$"),
        ("rounds", "^cannot read 'rounds': write key=value$"),
        ("data=", r"^--data must be PATH\|tff"),
        ("save=new/", "^--save new/ is a folder's name"),
    ],
)
def test_mistakes(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_settings([word])


@pytest.fixture
def refusing(tmp_path: Path) -> Path:
    """A folder with a `flwr` that says no. `flwr run` may exit with 0 when it does."""
    said = json.dumps({"success": False, "error-message": "some warnings\nno such connection"})
    program = tmp_path / "bin" / "flwr"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    return program.parent


def test_a_run_that_flower_does_not_take_is_a_mistake_in_one_line(
    refusing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower, "BIN", refusing)
    with pytest.raises(InputError, match=r"^flwr run: no such connection$"):
        Loopback(tmp_path / "out").submit({})


def test_a_federation_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    Loopback(tmp_path / "out")
    with pytest.raises(InputError, match=r"out holds a federation already: --out is a new folder$"):
        Loopback(tmp_path / "out")


def test_flwr_need_not_be_beside_the_interpreter(
    refusing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian has Python in /usr/bin, and what pip installs in /usr/local/bin."""
    monkeypatch.setattr(flower, "BIN", tmp_path)
    monkeypatch.setenv("PATH", str(refusing))
    with pytest.raises(InputError, match=r"^flwr ls: no such connection$"):
        flower.flwr("ls")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="flwr is not installed"):
        flower.flwr("ls")
