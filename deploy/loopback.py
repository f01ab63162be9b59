"""A real federation on this machine: a SuperLink, N SuperNodes and `flwr run`, on loopback.

    python deploy/loopback.py --nodes 2 task=emnist_lr rounds=2 cohort=6

Settings are `key=value` pairs of the run config (the flags of `fedferry run`, without dashes in front).
Each SuperNode serves an equal share of the population, or what its --node-config says. Prints Flower's own
verdict on the run, and ends what it started, by process id. Logs, Flower's home and the results are under --out.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy.flower import BIN, COMPLETED, config_words, flwr, read_settings, write_connection
from settings.errors import InputError, counted
from settings.schema import Settings, Value

ROOT = Path(__file__).resolve().parent.parent
FLOWER = (str(BIN / "flower-superexec"),)
"""Flower's own executor: a new Python for every message."""
FORKING = (sys.executable, str(ROOT / "deploy" / "executor.py"))
"""Ours, which forks."""
FLOWER_SUPERNODE = (str(BIN / "flower-supernode"),)
"""Flower's own SuperNode: sleeps 3 s when there is no message."""
QUICK_SUPERNODE = (sys.executable, str(ROOT / "deploy" / "supernode.py"))
"""The same, with shorter sleeps while a run goes on."""
APPS = ("flwr-serverapp", "flwr-clientapp")
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What the app needs is installed already; `uv sync` at every run would need the network.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
}


class Loopback:
    """Parts of a federation by name: `superlink`, `node-0`, ..., and `NAME.executor`, which runs its apps.

    Each part is a process group of its own, so that a part is ended or killed with all that it started.

    Args:
        out: New folder of logs, the SuperLink's database, Flower's home and what the runs write.
        executor: Command of the executors: `FORKING` or `FLOWER`.
        supernode: Command of the SuperNodes: `FLOWER_SUPERNODE` or `QUICK_SUPERNODE`.
    """

    def __init__(
        self,
        out: Path,
        executor: Sequence[str] = FORKING,
        supernode: Sequence[str] = FLOWER_SUPERNODE,
    ) -> None:
        self.out = out.resolve()
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self._executor = executor
        self._supernode = supernode
        self._home = self.out / "flwr-home"
        if self._home.exists():
            raise InputError(f"{out} holds a federation already: --out is a new folder")
        self._home.mkdir(parents=True)
        temporary = self.out / "tmp"
        temporary.mkdir()
        # Flower finds its programs by name.
        path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
        self.environment = os.environ | ENVIRONMENT
        self.environment |= {"FLWR_HOME": str(self._home), "PATH": path, "TMPDIR": str(temporary)}

    def __enter__(self) -> "Loopback":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self.parts):
            self.stop(name, wait=False)
        for name in list(self.parts):
            self.stop(name)

    def start(self, node_configs: Sequence[str]) -> None:
        """Start the SuperLink, then a SuperNode for each node config, all at once."""
        self.start_superlink()
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start_node, range(len(node_configs)), node_configs))

    def start_superlink(self) -> None:
        """Start the SuperLink, with the database that an earlier one left."""
        words = ("--isolation", "process", "--database", str(self.out / "superlink.db"))
        self._serve("superlink", str(BIN / "flower-superlink"), "--insecure", *words)
        write_connection(self._home, "loopback", f"127.0.0.1:{self._ports['superlink']}")

    def start_node(self, index: int, node_config: str) -> None:
        """Start SuperNode `node-INDEX`; `node_config` is its `--node-config`."""
        superlink = ("--superlink", f"127.0.0.1:{self._ports['superlink']}")
        words = ("--isolation", "process", "--node-config", node_config)
        self._serve(f"node-{index}", *self._supernode, "--insecure", *superlink, *words)

    def _serve(self, name: str, *program: str) -> None:
        """Start a program that listens, and its executor; after a restart on the port that it had."""
        for _ in range(3):  # somebody else may take the free port first
            port = self._ports.get(name) or free_port()
            self._start(name, *program, "--host", "127.0.0.1", "--port", str(port))
            if self._listens(name, port):
                break
            self.kill(name)
        else:
            raise SystemExit(f"{name} does not listen on port {port}: see {self.out / name}.log")
        self._ports[name] = port
        if f"{name}.executor" not in self.parts:
            address = ("--insecure", "--runtime-api-address", f"127.0.0.1:{port}")
            self._start(f"{name}.executor", *self._executor, *address)

    def _start(self, name: str, *command: str) -> None:
        with (self.out / f"{name}.log").open("ab") as log:
            self.parts[name] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.out,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _listens(self, name: str, port: int, timeout: float = 120.0) -> bool:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.parts[name].poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return True
            time.sleep(0.1)
        return False

    def stop(self, name: str, wait: bool = True) -> None:
        """Ask a part and all that it started to end; after 15 seconds, kill what is left."""
        process = self.parts[name]
        _signal_group(process.pid, signal.SIGTERM)
        if wait:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            self.kill(name)

    def kill(self, name: str) -> None:
        """`kill -9` a part and all that it started."""
        process = self.parts.pop(name)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()

    def apps(self, name: str) -> list[int]:
        """Process ids of the apps that a part's executor runs now; one that ends may be among them."""
        group = self.parts[f"{name}.executor"].pid
        return sorted(p for p, comm, pgrp in _processes() if pgrp == group and comm in APPS)

    def flwr(self, *words: str) -> Any:
        """What a `flwr` command answers here."""
        return flwr(*words, environment=self.environment, folder=self.out)

    def submit(self, config: Mapping[str, Value], app: Path = ROOT) -> str:
        """`flwr run` with this run config: the id of the run."""
        words = ("run", str(app), "loopback", "--run-config", config_words(config))
        return str(self.flwr(*words)["run-id"])

    def verdict(self, run_id: str) -> tuple[str, str]:
        """A run's status and its details, by `flwr ls`: `flwr run` exits with 0 whatever happens."""
        (run,) = self.flwr("ls", "loopback", "--run-id", run_id)["runs"]
        return run["status"], run["status-details"].replace("N/A", "")

    def wait(self, run_id: str, timeout: float) -> tuple[str, str]:
        """The verdict once the run has ended, or after `timeout` seconds."""
        deadline, pause = time.monotonic() + timeout, 1.0
        while True:
            time.sleep(pause)  # `flwr ls` costs more than a second of CPU
            said = self.verdict(run_id)
            if said[0].startswith("finished") or time.monotonic() > deadline:
                return said
            pause = min(2 * pause, 8.0)

    def follow(self, run_id: str, timeout: float) -> None:
        """Print a run's log while it goes on."""
        command = [str(BIN / "flwr"), "log", run_id, "loopback", "--stream"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=self.environment, cwd=self.out, timeout=timeout)


def equal_shares(nodes: int) -> list[str]:
    """The node configs of SuperNodes that share a population."""
    return [f"partition-id={index} num-partitions={nodes}" for index in range(nodes)]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _processes() -> Iterator[tuple[int, str, int]]:
    """Process id, name and process group of every process."""
    said = subprocess.run(["ps", "-eo", "pid=,pgid=,comm="], capture_output=True, text=True)
    for line in said.stdout.splitlines():
        pid, group, name = line.split(maxsplit=2)
        yield int(pid), name, int(group)


def federate(
    out: Path, node_configs: Sequence[str], config: Mapping[str, Value], timeout: float
) -> bool:
    """Start everything, run the app once, print its log and the verdict; whether it was `COMPLETED`."""
    with Loopback(out) as loopback:
        nodes = counted(len(node_configs), "SuperNode")
        print(f"a SuperLink and {nodes} on loopback; logs in {out}", flush=True)
        loopback.start(node_configs)
        run_id = loopback.submit(config)
        loopback.follow(run_id, timeout)
        status, details = loopback.wait(run_id, 10)
        print(f"verdict on run {run_id}: {status}{f' ({details})' if details else ''}")
        return status == COMPLETED


def check(config: Mapping[str, Value]) -> None:
    """Raise InputError for what server or clients would refuse, which is said sooner than processes start."""
    from simulation.federation import in_process  # torch: --help is quick

    in_process(Settings.from_config({**config, "min-available-nodes": 1}))


def end_on_signals() -> None:
    """Ended from outside, too, a program ends what it has started: by Ctrl-C and by SIGTERM."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a shell's background jobs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def positive(text: str) -> int:
    """A number of things of which there must be one, for `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text!r}")
    return int(text)


def main() -> None:
    """Read the command line; the exit code is 0 only if Flower says that the run was completed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=positive, default=2, help="SuperNodes, of equal shares")
    parser.add_argument(
        "--node-config", action="append", help="one SuperNode's; several times, instead of --nodes"
    )
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for the whole run")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / time.strftime("runs/loopback-%Y%m%d-%H%M%S"),
        help="new folder (default: runs/loopback-TIME)",
    )
    parser.add_argument("config", nargs="*", metavar="key=value", help="as in rounds=5")
    options = parser.parse_args()
    end_on_signals()
    try:
        config = read_settings(options.config)
        if not config["logdir"]:
            config["logdir"] = str(options.out.resolve() / "run")
        if not options.node_config:  # with one, nodes may have data of their own
            check(config)
        nodes = options.node_config or equal_shares(options.nodes)
        completed = federate(options.out, nodes, config, options.timeout)
    except InputError as error:
        print(f"loopback: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if completed else 1)


if __name__ == "__main__":
    main()
