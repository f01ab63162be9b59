"""What happens to a run when real processes fail: docs/faults.md has the table."""

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from deploy.flower import COMPLETED
from deploy.loopback import Loopback
from tests.deploy.conftest import Job, MakeJob, same_model, until

pytestmark = pytest.mark.processes
Simulated = Callable[..., Job]


def finish(federation: Loopback, run_id: str, job: Job) -> None:
    """Wait for the run's model, and for Flower's verdict on it."""
    until((job.folder / "model.safetensors").exists)
    assert federation.wait(run_id, 30)[0] == COMPLETED


def start_till_b_waits(federation: Loopback, job: Job) -> str:
    """Start a run whose client b waits in round 2, until it does; the run's id."""
    job.tell(b="fine wait")
    run_id = federation.submit(job.settings.to_config())
    until(lambda: len(job.rounds) == 1)
    until(lambda: not (job.folder / "b.faults").read_text())
    return run_id


def test_two_runs_at_once(federation: Loopback, job: MakeJob, simulated: Simulated) -> None:
    jobs = [job(f"seed-{seed}", rounds=2, cohort="4", seed=seed) for seed in (1, 2)]
    runs = [federation.submit(each.settings.to_config()) for each in jobs]
    for run_id, each in zip(runs, jobs, strict=True):
        finish(federation, run_id, each)
        assert [record["comm"]["answered"] for record in each.rounds] == [4, 4]
        same_model(each, simulated(each))


def test_clients_and_a_supernode_fail(
    federation: Loopback, job: MakeJob, simulated: Simulated
) -> None:
    """Clients a to c live on nodes 0 to 2, and h on node 1."""
    run = job("clients", rounds=2, client_ids="a,b,c,h", deadline=15)
    run.tell(a="wait", b="raise", h="hang")
    run_id = federation.submit(run.settings.to_config())
    run.reached("a")
    os.kill(federation.apps("node-0")[-1], signal.SIGKILL)
    federation.kill("node-0")
    federation.kill("node-0.executor")
    federation.start_node(0, "partition-id=0 num-partitions=3")
    finish(federation, run_id, run)
    first, second = (record["comm"] for record in run.rounds)
    assert (first["answered"], first["late"]) == (1, 2)
    assert "told to raise" in first["failed"]["b"]
    assert (second["answered"], second["late"], second["failed"]) == (4, 0, {})
    same_model(run, simulated(run, a="raise", b="raise", h="raise"))


def test_serverapp_killed(federation: Loopback, job: MakeJob, simulated: Simulated) -> None:
    run = job("serverapp", rounds=3, client_ids="a,b,c")
    run_id = start_till_b_waits(federation, run)
    os.kill(federation.apps("superlink")[-1], signal.SIGKILL)
    (run.folder / "b.go").touch()
    again = federation.submit(run.settings.to_config() | {"resume": True})
    finish(federation, again, run)
    assert [record["round"] for record in run.rounds] == [1, 2, 3]
    assert federation.verdict(run_id)[0] != COMPLETED
    same_model(run, simulated(run))


def test_superlink_killed_with_its_database(
    federation: Loopback, job: MakeJob, simulated: Simulated
) -> None:
    run = job("superlink", rounds=3, client_ids="a,b,c")
    run_id = start_till_b_waits(federation, run)
    federation.kill("superlink")
    (run.folder / "b.go").touch()
    federation.start_superlink()
    finish(federation, run_id, run)
    assert [record["comm"]["answered"] for record in run.rounds] == [3, 3, 3]
    same_model(run, simulated(run))


def test_superlink_killed_while_it_hands_a_message_over(
    federation: Loopback, job: MakeJob, simulated: Simulated
) -> None:
    """Its database has the message as delivered, and the node has never seen it. Client h waits behind b."""
    run = job("handed-over", rounds=3, client_ids="a,b,c,h")
    run_id = start_till_b_waits(federation, run)
    federation.kill("superlink")
    with closing(sqlite3.connect(federation.out / "superlink.db")) as database, database:
        handed = "UPDATE message_ins SET delivered_at = created_at WHERE delivered_at = ''"
        assert database.execute(handed).rowcount >= 1
    (run.folder / "b.go").touch()
    federation.start_superlink()
    finish(federation, run_id, run)
    assert [record["comm"]["answered"] for record in run.rounds] == [4, 4, 4]
    same_model(run, simulated(run))


def test_a_run_that_fails_says_why(federation: Loopback, job: MakeJob) -> None:
    run_id = federation.submit(job("failing").settings.to_config() | {"task": "nonsense"})
    status, details = federation.wait(run_id, 60)
    assert status == "finished:failed"
    assert "unknown task 'nonsense': choose from shakespeare, emnist_lr, emnist_cnn" in details
