"""A real federation on this machine: a SuperLink, N SuperNodes and `flwr run`, on loopback.

    python deploy/loopback.py --nodes 2 task=emnist_lr rounds=2 cohort=6

Settings are `key=value` pairs of the run config (the flags of `fedferry run`, without dashes in front).
Each SuperNode serves an equal share of the population. Prints Flower's own verdict on the run, and ends
what it started, by process id. Logs, Flower's home and the results are under --out.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What the app needs is installed already; `uv sync` at every run would need the network.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes], timeout: float = 60.0) -> None:
    """Wait until somebody listens on the port."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(f"the SuperLink does not listen on port {port}: see its log")


def verdict(env: dict[str, str]) -> dict[str, object]:
    """What the SuperLink says of the last run: `flwr run` exits with 0 whatever happens."""
    command = [str(BIN / "flwr"), "ls", "loopback", "--format", "json"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    run: dict[str, object] = json.loads(said)["runs"][0]
    return run


def federate(out: Path, nodes: int, config: dict[str, str], timeout: float) -> str:
    """Start everything, run the app, and return the run's status."""
    home, port = out / "flwr-home", free_port()
    home.mkdir(parents=True)
    connection = f'[superlink.loopback]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection)
    # The SuperLink and the SuperNodes start their executors by name.
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    env = os.environ | ENVIRONMENT | {"FLWR_HOME": str(home), "PATH": path}
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str) -> subprocess.Popen[bytes]:
        with (out / f"{name}.log").open("wb") as log:
            command = [str(BIN / words[0]), *words[1:]]
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
        return started[-1]

    try:
        address = ("--host", "127.0.0.1", "--port")
        link = start("superlink", "flower-superlink", "--insecure", *address, str(port))
        wait_for(port, link)
        for index in range(nodes):
            share = f"partition-id={index} num-partitions={nodes}"
            connect = ("--insecure", "--superlink", f"127.0.0.1:{port}", "--node-config", share)
            name = f"supernode-{index}"
            start(name, "flower-supernode", *connect, *address, str(free_port()))
        values = " ".join(f"{key}={value}" for key, value in config.items())
        print(f"SuperLink on port {port}, {nodes} SuperNodes; logs in {out}", flush=True)
        command = [str(BIN / "flwr"), "run", str(ROOT), "loopback", "--run-config", values]
        subprocess.run([*command, "--stream"], env=env, check=True, timeout=timeout)
        return str(verdict(env)["status"])
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=30)


def toml(value: str) -> str:
    """A run config value as TOML: numbers and true/false as they are, everything else quoted."""
    try:
        float(value)
    except ValueError:
        return value if value in ("true", "false") else json.dumps(value)
    return value


def main() -> None:
    """Read the command line and report the verdict, which is the exit code too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for the whole run")
    parser.add_argument("--out", type=Path, default=ROOT / time.strftime("runs/loopback-%H%M%S"))
    parser.add_argument("config", nargs="*", metavar="key=value")
    options = parser.parse_args()
    pairs = dict(pair.split("=", 1) for pair in options.config)
    text_keys = ("cohort", "eval-cohort")  # text in the schema, though they look like numbers
    config = {k: json.dumps(v) if k in text_keys else toml(v) for k, v in pairs.items()}
    out = options.out.resolve()
    config.setdefault("logdir", json.dumps(str(out / "run")))
    status = federate(out, options.nodes, config, options.timeout)
    print(f"verdict: {status}")
    sys.exit(0 if status == "finished:completed" else 1)


if __name__ == "__main__":
    main()
