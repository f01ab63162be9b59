"""The pauses of our SuperNode, and that they are still the ones which Flower's loop makes."""

import inspect
import re
import time

import pytest
from flwr.supernode import start_client_internal

from deploy.supernode import Pauses


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made so far; a clock that only they advance."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + sum(pauses))
    return pauses


def test_pauses_grow_with_the_waiting_up_to_flowers(slept: list[float]) -> None:
    pauses = Pauses()
    while sum(slept) < 60:
        pauses.sleep(3)
    assert slept[:5] == [0.2] * 5
    assert slept == sorted(slept)
    assert slept[-1] == 3
    assert len(slept) < 60


def test_another_thing_to_wait_for_starts_anew(slept: list[float]) -> None:
    pauses = Pauses()
    for _ in range(100):
        pauses.sleep(3)
    pauses.sleep(0.5)  # a message came: its reply
    assert slept[-2:] == [3, 0.2]
    for _ in range(100):
        pauses.sleep(0.5)
    pauses.sleep(3)  # the reply is gone: the next message
    assert slept[-2:] == [0.5, 0.2]


def test_flowers_loop_takes_from_time_only_what_there_is() -> None:
    source = inspect.getsource(start_client_internal)
    assert set(re.findall(r"\btime\.(\w+)\(", source)) == {"sleep"}
    assert {"3", "0.5"} == set(re.findall(r"\btime\.sleep\((.*?)\)", source))
