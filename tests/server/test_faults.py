"""Faults that need no process of their own: updates of 1e30, replies that are lost or come a round too late."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from client.app import app as client_app
from server.rounds import Federation
from settings.schema import Settings
from simulation.grid import InProcessGrid
from weights.named import NamedArrays, fingerprint


class SlowGrid(InProcessGrid):
    """Holds client h's reply to round 1 back until those to round 2 are there."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(client_app, settings.to_config())
        self._held: set[str] = set()
        self._round = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = [*messages]
        ids = super().push_messages(sent)
        for message, message_id in zip(sent, ids, strict=True):
            config = message.content.config_records["config"]
            self._round = max(self._round, int(config.get("server-round", 0)))  # type: ignore[arg-type]
            if (config.get("client-id"), config.get("server-round")) == ("h", 1):
                self._held.add(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        replies = super().pull_messages(wanted - self._held)
        if replies and self._round == 2:
            replies += super().pull_messages(self._held)  # nobody asked for it
        return replies


class LosingGrid(InProcessGrid):
    """Loses client a's first message of a round before it is worked on, and g's first reply."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(client_app, settings.to_config())
        self.lost: list[str] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = [*message_ids]
        message = next(self._pending[each] for each in self._pending if each in wanted)
        config = message.content.config_records
        client = str(config["config"].get("client-id"))
        if client not in ("a", "g") or "again" in config:
            return super().pull_messages(wanted)
        self.lost.append(client)
        if client == "a":
            del self._pending[message.metadata.message_id]
        else:
            super().pull_messages(wanted)
        return [Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "lost"), reply_to=message)]


def settings_of(data: str, **values: Any) -> Settings:
    fixed = {"task": "emnist_lr", "client_ids": "a,g,h", "eval_every": 0}
    return Settings(data=data, **{**fixed, **values})


@pytest.mark.parametrize("codec", ["", "topk:fraction=0.02,feedback=true,threshold=100"])
def test_what_is_lost_and_sent_again_counts_once(codec: str, writers: str) -> None:
    """In error feedback too, where a client that works twice on one message adds its residual twice."""
    settings = settings_of(writers, codec=codec)
    grid = LosingGrid(settings)
    got = train(grid, settings, 4)
    assert grid.lost == ["a", "g"] * 4
    assert [record.comm["answered"] for record in got.history] == [3] * 4
    wanted = train(InProcessGrid(client_app, settings.to_config()), settings, 4)
    for name, array in wanted.strategy.weights.items():
        apart = np.abs(got.strategy.weights[name] - array) > 1e-6
        # A client by itself rounds otherwise, and then the last of the largest may be another one.
        assert apart.mean() < 0.001


def train(grid: InProcessGrid, settings: Settings, rounds: int = 2) -> Federation:
    federation = Federation(settings, grid)
    for _ in range(rounds):
        federation.next()
    return federation


def in_process(data: str, **values: Any) -> Federation:
    settings = settings_of(data, **values)
    return train(InProcessGrid(client_app, settings.to_config()), settings)


def test_a_late_reply_counts_in_no_round(writers: str) -> None:
    settings = settings_of(writers, deadline=1)
    late = train(SlowGrid(settings), settings)
    first, second = (record.comm for record in late.history)
    assert (first["answered"], first["late"]) == (2, 1)
    assert (second["answered"], second["late"]) == (3, 0)

    # The same as a first round without h and a second one with all.
    fresh = settings_of(writers)
    grid = InProcessGrid(client_app, fresh.to_config())
    without = Federation(settings_of(writers, client_ids="a,g"), grid)
    without.next()
    expected = Federation(fresh, grid)
    expected.strategy.load(without.strategy.weights)
    expected.history.extend(without.history)
    expected.next()
    assert fingerprint(late.strategy.weights) == fingerprint(expected.strategy.weights)


def largest(weights: NamedArrays) -> float:
    return max(float(np.abs(array).max()) for array in weights.values())


def test_updates_of_1e30(writers: str, tmp_path: Path) -> None:
    """Client a's pixels are 1e32, its update is about 1e30 and finite: only robust aggregation knows better."""
    shutil.copytree(Path(writers).parent, tmp_path / "huge")
    data = tmp_path / "huge" / "digits_train.h5"
    with h5py.File(data, "r+") as file:
        file["examples/a/pixels"][:] = np.float32(1e32)
    robust = in_process(str(data), aggregator="robust")
    assert [record.aggregator["zeroed_count"] for record in robust.history] == [1, 1]
    assert largest(robust.strategy.weights) < 1
    assert [record.comm["answered"] for record in robust.history] == [3, 3]

    plain = in_process(str(data))
    assert largest(plain.strategy.weights) > 1e27
