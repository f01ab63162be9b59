"""What a person sees of a run."""

import sys
from logging import WARNING

import pytest
from flwr.supercore import log
from flwr.supercore.logger import console_handler

from client.app import app as client_app
from server.cohort import Cohort
from server.console import Console
from server.directory import Directory
from settings.schema import Settings
from simulation.grid import InProcessGrid


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warning_goes_above_the_progress_bar(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where standard error is the terminal, too; where it is a file it goes there."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(console_handler, "stream", sys.stderr)
    settings = Settings(cohort="1")
    directory = Directory(InProcessGrid(client_app, {}), {"a": 2})
    with Console(settings, Cohort(directory, settings), []):
        log(WARNING, "the disk is full")
    log(WARNING, "that was it")
    out, err = capsys.readouterr()
    said = "WARNING" in out, "the disk is full\n" in out, "the disk is full\n" in err
    assert said == (terminal, terminal, not terminal)
    assert "that was it\n" in err
    assert not any("clients" in line and "WARNING" in line for line in out.splitlines())
