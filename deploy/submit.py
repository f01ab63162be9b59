"""Submit the app to a SuperLink, follow its log, and report Flower's verdict, which is the exit code too.

    python -m deploy.submit superlink:8000 --insecure
    python -m deploy.submit superlink:8000 --root-certificates ca.crt --register nodes/

RUN holds the run's settings, the flags of `fedferry run` without dashes: "rounds=5 cohort=10". Without a
logdir among them, logs, metrics.json, checkpoints and the model go to a new folder in /results. The verdict is
left where `deploy/service.py` waits for it.
"""

import argparse
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.flower import COMPLETED, config_words, flwr, read_settings, write_connection
from deploy.service import VERDICT
from settings.errors import InputError

APP = Path(__file__).parent.parent
CONNECTION = "compose"
_PAUSE, _LONG_PAUSE = 2.0, 30.0
"""Seconds between questions for the run's status, once its log has ended and before."""


def wait_for(address: str, timeout: float) -> None:
    """Wait until somebody listens."""
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"waited {timeout:.0f} s for the SuperLink at {address}: {error}"
                ) from None
            time.sleep(0.5)


def register(keys: Path) -> None:
    """Register the SuperNodes whose public keys are in the folder; one that is registered stays so."""
    for key in sorted(keys.glob("*.pub")):
        try:
            flwr("supernode", "register", str(key), CONNECTION)
        except InputError as error:
            if "already in use" not in str(error):
                raise
        print(f"{key.stem} is registered", flush=True)


def submit() -> str:
    """Start the run; its id."""
    config = read_settings(shlex.split(os.environ.get("RUN", "")))
    if not config["logdir"]:
        config["logdir"] = time.strftime("/results/%Y%m%d-%H%M%S")
    config["save"] = config["save"] or f"{config['logdir']}/model.safetensors"
    words = ("run", str(APP), CONNECTION, "--run-config", config_words(config))
    return str(flwr(*words)["run-id"])


def follow(run_id: str, timeout: float, patience: float) -> dict[str, Any]:
    """Show the run's log until it has ended; what `flwr ls` says then.

    A SuperLink that is started again within `patience` seconds goes on with the run.
    """
    log = subprocess.Popen(["flwr", "log", run_id, CONNECTION, "--stream"])
    heard = started = time.monotonic()
    run: dict[str, Any] = {"run-id": run_id, "status": "unknown", "status-details": ""}
    while not run["status"].startswith("finished"):
        # The log ends with the run. Questions meanwhile are for a run that hangs: each costs a second of CPU.
        if log.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                log.wait(_LONG_PAUSE)
        else:
            time.sleep(_PAUSE)
        try:
            (run,) = flwr("ls", CONNECTION, "--run-id", run_id)["runs"]
            heard = time.monotonic()
        except InputError as error:
            if time.monotonic() - heard > patience:
                run |= {"status": "unknown", "status-details": str(error)}
                break
        if time.monotonic() - started > timeout:
            run["status-details"] = f"not finished after {timeout:.0f} s"
            subprocess.run(["flwr", "stop", run_id, CONNECTION])
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        log.wait(timeout=10)
    log.terminate()
    return run


def report(run: dict[str, Any]) -> None:
    """Print the verdict and leave it for the services, which end then."""
    details = run["status-details"].replace("N/A", "")
    said = f"verdict on run {run['run-id']}: {run['status']}"
    print(f"{said} ({details})" if details else said, flush=True)
    written = VERDICT.with_suffix(".new")
    written.write_text(json.dumps({**run, "reported": time.time()}))
    written.replace(VERDICT)


def main() -> None:
    """Read the command line, submit, follow and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("superlink", metavar="HOST:PORT", help="its control API")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--insecure", action="store_true", help="no TLS")
    trust.add_argument("--root-certificates", type=Path, metavar="FILE", help="CA to trust")
    parser.add_argument("--register", type=Path, metavar="DIR", help="SuperNodes' public keys")
    parser.add_argument("--wait", type=float, default=120.0, help="seconds for a silent SuperLink")
    parser.add_argument("--timeout", type=float, default=86400.0, help="seconds for the run")
    options = parser.parse_args()
    run: dict[str, Any] = {"run-id": "none", "status": "not started", "status-details": ""}
    try:
        wait_for(options.superlink, options.wait)
        home = Path(os.environ["FLWR_HOME"])
        write_connection(home, CONNECTION, options.superlink, options.root_certificates)
        if options.register:
            register(options.register)
        run = follow(submit(), options.timeout, options.wait)
    except InputError as error:
        run["status-details"] = str(error)
    report(run)
    sys.exit(0 if run["status"] == COMPLETED else 1)


if __name__ == "__main__":
    main()
