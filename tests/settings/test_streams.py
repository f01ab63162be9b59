"""What is printed and logged."""

import logging
import os
import subprocess
import sys

import pytest

from settings.errors import InputError
from settings.streams import mistakes_in_one_line


def test_what_an_encoding_lacks_is_escaped() -> None:
    program = "from settings.streams import print_anything; print_anything(); print('l\\xe4uf')"
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert said.stdout == b"l\\xe4uf\n", said.stderr


def test_flower_logs_a_mistake_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    mistakes_in_one_line()
    mistakes_in_one_line()
    log = logging.getLogger("flwr")
    for error in (InputError("unknown task 'x'"), KeyError("a bug")):
        try:
            raise error
        except (InputError, KeyError) as caught:
            log.error("%s raised an exception", "ServerApp", exc_info=caught)
    mistake, bug = caplog.records
    assert mistake.getMessage() == "ServerApp raised an exception: unknown task 'x'"
    assert mistake.exc_info is None
    assert bug.getMessage() == "ServerApp raised an exception"
    assert bug.exc_info is not None
