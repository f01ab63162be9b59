"""Break a federation of containers, with TLS and authentication on, and see that it holds.

    python deploy/container_test.py                              # with `docker compose`
    COMPOSE="podman-compose" python deploy/container_test.py     # or what else speaks compose

Starts docker-compose.yml with docker-compose.tls.yml under a project name of its own, prints one line a check,
exits with 1 at the first that fails, and removes what it started. Takes six to eleven minutes on two cores, two
of them waiting until Flower takes a silent client for dead (a minute each).
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
COMPOSE = [
    *shlex.split(os.environ.get("COMPOSE", "docker compose")),
    *("-p", f"fedferry-test-{os.getpid()}"),
    *("-f", "docker-compose.yml", "-f", "docker-compose.tls.yml"),
]
ROUNDS = 12
# One client of each SuperNode in every round, so that a lost container is one lost reply.
RUN = (
    "client-ids=HAMLET_HAMLET,OTHELLO_IAGO,MACBETH_MACBETH max-batches=25 eval-batches=1 "
    f"rounds={ROUNDS} eval-every={ROUNDS} deadline=300 logdir=/results/test"
)
SERVICES = ["superlink", "serverapp", "tensorboard", "run"]
SERVICES += [f"{kind}-{number}" for kind in ("supernode", "clientapp") for number in (1, 2, 3)]
VERDICT = re.compile(r"verdict on run .*?: [\w: ]+")
Comm = dict[str, Any]


def compose(*words: str, timeout: float = 900.0) -> str:
    """Run a compose command; what it printed, both streams together."""
    done = subprocess.run(
        [*COMPOSE, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=timeout,
    )
    return done.stdout


def passed(check: str, seen: object) -> None:
    """Say that a check held, and what was seen."""
    print(f"ok    {time.monotonic() - STARTED:4.0f} s  {check}: {seen}", flush=True)


def failed(check: str, seen: object) -> NoReturn:
    """Say what was seen instead, with the last lines of every service's log, and end."""
    print(f"FAILED  {check}: {seen}", flush=True)
    print(compose("logs", "--tail", "15"), file=sys.stderr)
    raise SystemExit(1)


def until(check: str, look: Callable[[], Any], timeout: float) -> Any:
    """Look every two seconds until there is something to see."""
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        if time.monotonic() > deadline:
            failed(check, f"not within {timeout:.0f} s")
        time.sleep(2)
    return seen


def rounds() -> list[Comm]:
    """What metrics.json says became of each round's messages, so far."""
    said = compose("exec", "-T", "serverapp", "cat", "/results/test/metrics.json")
    start = said.find("{")
    try:
        content, _ = json.JSONDecoder().raw_decode(said[start:])
    except ValueError:
        return []
    return [item["comm"] for item in content["rounds"]]


def round_of(number: int) -> Comm:
    """A round's `comm`, once the round is over."""
    done = until(f"round {number} ends", lambda: rounds()[number - 1 :], timeout=400)
    comm: Comm = done[0]
    return comm


def messages(service: str) -> int:
    """How many messages to train a SuperNode has received."""
    return compose("logs", service).count("Receiving: train message")


def verdicts() -> list[str]:
    """The verdict on the run, once it is there."""
    return VERDICT.findall(compose("logs", "run"))


def trains(service: str) -> bool:
    """Whether an executor runs an app at this moment."""
    look = "cat /proc/[0-9]*/comm"
    return "flwr-clientapp" in compose("exec", "-T", service, "sh", "-c", look)


def in_short(comm: Comm) -> str:
    """asked, answered, failed, late."""
    counts = ("asked", "answered", "late")
    return f"{', '.join(f'{name} {comm[name]}' for name in counts)}, failed {comm['failed']}"


def check_start() -> None:
    """Round 1, over TLS, with everybody."""
    compose("up", "-d", "--build", timeout=1800)
    until("the run starts", lambda: messages("supernode-1") or verdicts(), timeout=900)
    if verdicts():
        failed("the run starts", verdicts()[-1])
    comm = round_of(1)
    if (comm["asked"], comm["answered"]) != (3, 3):
        failed("three SuperNodes train over TLS", in_short(comm))
    passed("three SuperNodes train over TLS", f"round 1: {in_short(comm)}")


def check_stranger(keys: Path) -> None:
    """A SuperNode whose key nobody registered, with the right CA."""
    command = (
        "flower-supernode --superlink superlink:8000 --root-certificates /certificates/ca.crt "
        "--auth-supernode-private-key /stranger/supernode-1/node.key"
    )
    mount = ("-v", f"{keys}:/stranger:ro")
    said = compose(
        "run", "--rm", "-T", "--no-deps", *mount, "supernode-1", *command.split(), timeout=120
    )
    if "Failed to initialize the connection" not in said:
        failed("an unregistered SuperNode is refused", said[-500:])
    reason = [line for line in said.splitlines() if "code:" in line or "egister" in line]
    passed("an unregistered SuperNode is refused", " ".join(reason).strip() or said[-200:])


def check_killed(service: str, number: int) -> None:
    """Kill one client's container while it trains; start it again; see it answer again."""
    before = messages(f"supernode-{number}")
    until("the next round", lambda: messages(f"supernode-{number}") > before, timeout=400)
    until(f"clientapp-{number} trains", lambda: trains(f"clientapp-{number}"), timeout=60)
    number = len(rounds()) + 1
    compose("kill", service)
    comm = round_of(number)
    check = f"{service} killed in round {number} costs one reply"
    if (comm["asked"], comm["answered"], len(comm["failed"]) + comm["late"]) != (3, 2, 1):
        failed(check, in_short(comm))
    passed(check, in_short(comm))
    compose("start", service)
    check = f"{service} started again answers again"

    def joined() -> list[str]:
        later = enumerate(rounds()[number:], start=number + 1)
        return [f"round {n}: {in_short(comm)}" for n, comm in later if comm["answered"] == 3]

    passed(check, until(check, joined, timeout=600)[0])


def check_end() -> None:
    """The run ends well, and so does every service."""
    found = until("the run ends", verdicts, timeout=900)
    if not found[-1].endswith("finished:completed"):
        failed("the run ends well", found[-1])
    passed("the run ends well", found[-1])
    until("every service ends", lambda: not any(map(alive, SERVICES)), timeout=60)
    passed("every service ends", f"none of the {len(SERVICES)} runs")


def alive(service: str) -> bool:
    """Whether a service's container runs; `ps` differs too much between engines."""
    command = [*COMPOSE, "exec", "-T", service, "true"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode == 0


STARTED = time.monotonic()


def main() -> None:
    """All checks, in the order in which the federation lives through them."""
    # Ended from outside, too, it removes what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="fedferry-") as folder:
        make = [sys.executable, str(ROOT / "deploy/make_certificates.py")]
        for name in ("certificates", "stranger"):
            subprocess.run([*make, f"{folder}/{name}"], check=True, stdout=subprocess.DEVNULL)
        Path(folder).chmod(0o755)
        os.environ |= {
            "FEDFERRY_CERTIFICATES": f"{folder}/certificates",
            "FEDFERRY_RUN": RUN,
            "FEDFERRY_TENSORBOARD": os.environ.get("FEDFERRY_TENSORBOARD", "16006"),
        }
        try:
            check_start()
            check_stranger(Path(folder) / "stranger")
            check_killed("clientapp-2", 2)
            check_killed("supernode-3", 3)
            check_end()
        finally:
            compose("down", "-v")
    print("all checks passed")


if __name__ == "__main__":
    main()
