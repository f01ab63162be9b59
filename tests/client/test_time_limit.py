"""No client keeps its node for ever."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from client import app
from client.time_limit import time_limit
from simulation.grid import InProcessGrid
from tasks.catalogue import load_task
from weights.named import arrays_of
from weights.wire import pack


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        (MessageType.TRAIN, "_trained"),
        (MessageType.EVALUATE, "_result"),
        (MessageType.QUERY, "_served"),
    ],
)
def test_a_client_that_hangs_gives_up_with_the_server(
    kind: str, work: str, writers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = InProcessGrid(app.app, {"task": "emnist_lr", "data": writers})
    monkeypatch.setattr(app, work, lambda *_: time.sleep(60))
    model = pack(arrays_of(load_task("emnist_lr").build("")))
    config = ConfigRecord({"client-id": "a", "server-round": 1})
    content = RecordDict({"arrays": model, "config": config})
    message = Message(content, grid.get_node_ids()[0], kind, ttl=0.6)
    started = time.monotonic()
    (reply,) = grid.send_and_receive([message])
    assert time.monotonic() - started < 20
    assert "TimeoutError: not done after the 1 s that the server waits" in str(reply.error.reason)


def test_it_leaves_nothing_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(60.0):
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 50 < left <= 60
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before


def test_where_signals_do_not_come_there_is_no_limit() -> None:
    def work() -> float:
        with time_limit(0.01):
            time.sleep(0.1)
        return signal.getitimer(signal.ITIMER_REAL)[0]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 0.0
