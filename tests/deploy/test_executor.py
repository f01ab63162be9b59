"""The processes that the executor forks: what they do when they end, and what they leave out."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

# `serve` with nothing to load but json, and an app that prints, keeps an object, and registers an exit function.
SERVE = """
import atexit, io, sys
from deploy import executor

class Kept:
    def __del__(self):
        print("freed", flush=True)

def app(number):
    global kept
    kept = Kept()
    atexit.register(print, "the app's exit function", number)
    print("app", number)
    print("of fedferry loaded:", sorted({"settings", "tasks", "client", "server"} & {*sys.modules}))
    sys.exit(3)

executor._LOADED = ("json",)
executor.run_app = app
executor.serve(io.StringIO('{"number": 1}\\n'))
"""


# The defaults of Flower's function, read when its module is loaded.
WAITS = """
import inspect, io
from deploy import executor

executor._LOADED = ("flwr.supernode.cli",)
executor.serve(io.StringIO(""))
from flwr.supercore.inflatable.inflatable_utils import pull_objects
said = inspect.signature(pull_objects).parameters
for name in ("initial_backoff", "backoff_cap", "max_tries_per_object", "max_time"):
    print(said[name].default)
"""


def test_apps_look_often_and_long_for_what_is_still_being_uploaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WAITS], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["0.05", "0.2", "None", "7200"], done.stderr


def test_a_forked_app_starts_afresh_and_ends_without_taking_its_memory_apart() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    # Into a pipe, output is buffered: what was printed last is there only if the end flushes it.
    # Nothing of an installed fedferry may be loaded, else it would mix with the app's own, which comes with the run.
    said = ["app 1", "of fedferry loaded: []", "the app's exit function 1"]
    assert done.stdout.splitlines() == said
    assert done.stderr == ""
