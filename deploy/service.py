"""Run one service of docker-compose.yml until the federation's run has ended.

    python -m deploy.service [--retry SECONDS] COMMAND...

Flower's processes serve for ever, and `docker compose up` ends when every service has ended. So each service
watches the file in which `deploy/submit.py` leaves the verdict, and ends with 0 when a new one appears; an
older run's verdict is no reason to end. `--retry` starts a command that fails again, for that many seconds: a
SuperNode is refused until its key is registered, and, after it was killed, until the SuperLink has missed its
heartbeats.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

VERDICT = Path(os.environ.get("FEDFERRY_VERDICT", "/verdict/verdict.json"))
_POLL, _PAUSE, _GRACE = 0.5, 3.0, 10.0
"""Seconds: between looks at the verdict, before another try, for a service to end when asked."""


def read_verdict() -> str:
    """The last run's verdict; empty before the first."""
    return VERDICT.read_text() if VERDICT.exists() else ""


def serve(command: list[str], before: str, asked: list[int]) -> int:
    """Run the command once: its exit code, or 0 where a verdict other than `before` ended it.

    Exits, and ends the command, once `asked` holds a signal.
    """
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            if asked:
                sys.exit(143)
            if read_verdict() != before:
                return 0
            time.sleep(_POLL)
        return process.returncode
    finally:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()


def main() -> None:
    """Read the command line, serve, and exit as the command did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--retry", type=float, default=0.0, metavar="SECONDS", help="start a failing one again"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="one of Flower's processes")
    options = parser.parse_args()
    asked: list[int] = []
    # It does not raise: out of Popen's methods an exception may leave their lock taken, or a process that nobody ends.
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    before, give_up = read_verdict(), time.monotonic() + options.retry
    while (code := serve(options.command, before, asked)) > 0 and time.monotonic() < give_up:
        said = f"{options.command[0]} ended with {code}; another try in {_PAUSE:.0f} s"
        print(f"{said}, until {options.retry:.0f} s after the start", file=sys.stderr, flush=True)
        time.sleep(_PAUSE)
    sys.exit(code if code >= 0 else 128 - code)  # ended by a signal: as a shell reports it


if __name__ == "__main__":
    main()
