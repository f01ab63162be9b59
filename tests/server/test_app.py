"""What a user's mistake looks like in Flower's log, in a process that only the ServerApp is in."""

import subprocess
import sys

PROGRAM = """
from flwr.app import Context, RecordDict
from flwr.supercore import log
from server.app import app

try:
    app(grid=None, context=Context(0, 0, {}, RecordDict(), {"task": "nope"}))
except Exception as error:
    log(40, "%s raised an exception", "ServerApp", exc_info=error)  # as Flower's process does
"""


def test_a_mistake_has_no_stack_trace() -> None:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True).stderr
    assert "ServerApp raised an exception: unknown task 'nope': choose from" in said
    assert said.count("\n") == 1, said
