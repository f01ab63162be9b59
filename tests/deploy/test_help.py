"""What the programs of `deploy/` say of themselves."""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from deploy import compare, loopback


@pytest.mark.parametrize("name", ["loopback", "compare", "make_certificates", "submit", "service"])
def test_help_has_an_example_and_explains_every_word(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module: ModuleType = importlib.import_module(f"deploy.{name}")
    unexplained: list[str] = []
    parse = argparse.ArgumentParser.parse_args

    def look(parser: argparse.ArgumentParser) -> argparse.Namespace:
        unexplained.extend(action.dest for action in parser._actions if not action.help)
        return parse(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", look)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"    python deploy/{name}.py" in said or f"    python -m deploy.{name}" in said
    assert unexplained == []


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_federation_has_nodes(
    number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (loopback, compare):
        monkeypatch.setattr(sys, "argv", ["x.py", "--nodes", number])
        with pytest.raises(SystemExit) as end:
            module.main()
        assert end.value.code == 2
        assert f"argument --nodes: must be 1 or more, not '{number}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data=sampel", "sampel: no such file; did you mean sample?"),
        ("client-ids=HAMLET", "unknown client id 'HAMLET'"),
        ("init=nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("min-available-nodes=2", ""),
    ],
)
def test_a_mistake_is_said_before_anything_starts(
    word: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(loopback, "end_on_signals", lambda: None)
    monkeypatch.setattr(loopback, "federate", lambda *_: True)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["x.py", "--out", str(out), "task=emnist_lr", word])
    with pytest.raises(SystemExit) as end:
        loopback.main()
    assert end.value.code == (2 if said else 0)
    assert said in capsys.readouterr().err
    assert not out.exists()
