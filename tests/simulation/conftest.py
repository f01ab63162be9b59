"""The command, called in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simulation.cli import main

Result = tuple[int, str, str]
Command = Callable[..., Result]


@pytest.fixture
def fedferry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Call the command in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["fedferry", *words])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call
