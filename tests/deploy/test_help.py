"""What the programs of `deploy/` say of themselves."""

import argparse
import importlib
import sys
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
