"""What becomes of replies that are not as the compressing wrapper has asked for them."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from client.app import app as client_app
from server.adaptive_norm import AdaptiveNorm, default_zeroing
from server.compression import CompressedAggregation
from server.exchange import exchange
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tests.server.wrapped import UNIFORM, train, weighted
from weights.wire import pack


def altered(alter: Callable[[RecordDict], object]) -> ClientApp:
    """The real ClientApp, except that client `b` sends something else."""
    app = ClientApp()

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if message.content.config_records["config"]["client-id"] == "b":
            alter(reply.content)
        return reply

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return client_app(message, context)

    @app.train(mods=[mod])
    def training(message: Message, context: Context) -> Message:
        return client_app(message, context)

    return app


def garbled(change: Callable[[Array], Array]) -> ClientApp:
    """Client `b` sends an altered weight matrix."""

    def alter(content: RecordDict) -> None:
        record = content.array_records["arrays"]
        record["dense.weight"] = change(record["dense.weight"])

    return altered(alter)


def with_data(array: Array, data: bytes) -> Array:
    return Array(array.dtype, array.shape, array.stype, data)


HOSTILE: dict[str, Callable[[Array], Array]] = {
    "truncated": lambda a: with_data(a, a.data[:-1]),
    "over-long": lambda a: with_data(a, a.data + b"\0"),
    "empty": lambda a: with_data(a, b""),
    "garbage": lambda a: with_data(a, b"\xff" * len(a.data)),
    "wrong dtype": lambda a: Array("float64", a.shape, a.stype, a.data),
    "wrong shape": lambda a: Array(a.dtype, (784, 10), a.stype, a.data),
    "huge shape": lambda a: Array(a.dtype, (2**40, 2**20), a.stype, a.data),
    "wrong version": lambda a: Array(a.dtype, a.shape, "fedferry.uniform.v2", a.data),
    "another codec": lambda a: Array(a.dtype, a.shape, "fedferry.eden.v1", a.data),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_payload_costs_one_reply(how: str, writers: str) -> None:
    settings = Settings(task="emnist_lr", data=writers, client_ids="a,b,c")
    grid = InProcessGrid(garbled(HOSTILE[how]), settings.to_config())
    inner = weighted(grid, settings)
    model = train(CompressedAggregation(inner, UNIFORM), grid, rounds=1)
    assert inner.tally.answered == 2
    [(client_id, reason)] = inner.tally.failed.items()
    assert client_id == "b"
    assert re.match(r"node \d+: (the update's )?dense\.weight", reason), reason
    assert np.abs(model["dense.weight"]).max() > 0


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1e30, r"not subjected to zeroing: its norm is \S+e\+2\d, over 21"),
        (3.0, r"not subjected to clipping: its norm is 0.0\d+, over 0.02"),
    ],
)
def test_the_server_does_not_rely_on_clients_to_zero_and_clip(
    factor: float, said: str, writers: str
) -> None:
    def scaled(array: Array) -> Array:
        return Array((array.numpy() * np.float32(factor)).astype(np.float32))

    settings = Settings(task="emnist_lr", data=writers, client_ids="a,b,c")
    grid = InProcessGrid(garbled(scaled), settings.to_config())
    inner = weighted(grid, settings)
    clipping = AdaptiveNorm(0.02, 0.8, 0.2)
    aggregator = CompressedAggregation(inner, zeroing=default_zeroing(), clipping=clipping)
    model = train(aggregator, grid, rounds=1)
    [(client_id, reason)] = inner.tally.failed.items()
    assert client_id == "b"
    assert re.search(said, reason)
    # What a refused reply says of itself does not count either.
    assert aggregator.measurements["clipped_count"] == 2
    assert 0 < np.abs(model["dense.weight"]).max() < 0.2


@pytest.mark.parametrize(
    ("codec", "slack"),
    [
        ("identity", 1.001),
        (UNIFORM, 10.0),
        ("step:bits=8,rounding=nearest,feedback=true,threshold=100", 100.0),
    ],
)
def test_how_far_over_its_threshold_a_norm_may_be(codec: str, slack: float, writers: str) -> None:
    """Clients clip to another threshold here than the one that the server then holds them to."""
    for times, answered in ((0.95 * slack, 3), (1.05 * slack, 0)):
        settings = Settings(task="emnist_lr", data=writers, client_ids="a,b,c")
        grid = InProcessGrid(client_app, settings.to_config())
        inner = weighted(grid, settings)
        clipping = AdaptiveNorm(1e-4 * times, 0.8, 0.2)
        aggregator = CompressedAggregation(inner, codec, clipping=clipping)
        arrays = pack(inner.weights)
        messages = aggregator.configure_train(1, arrays, ConfigRecord(), grid)
        clipping.estimate = 1e-4
        aggregator.aggregate_train(1, exchange(grid, messages, 60.0))
        assert inner.tally.answered == answered


def test_a_client_without_data_is_no_failure(writers: str) -> None:
    def empty(content: RecordDict) -> None:
        content["arrays"], content["metrics"] = ArrayRecord(), MetricRecord({"num-examples": 0})

    settings = Settings(task="emnist_lr", data=writers, client_ids="a,b,c")
    grid = InProcessGrid(altered(empty), settings.to_config())
    inner = weighted(grid, settings)
    clipping = AdaptiveNorm(1e-4, 0.8, 0.2)
    aggregator = CompressedAggregation(inner, clipping=clipping)
    train(aggregator, grid, rounds=1)
    assert (inner.tally.answered, inner.tally.empty) == (3, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_the_wrapped_strategys_to_count(
    value: float, writers: str
) -> None:
    def spoil(array: Array) -> Array:
        return Array(np.full(array.shape, value, np.float32))

    settings = Settings(task="emnist_lr", data=writers, client_ids="a,b,c")
    grid = InProcessGrid(garbled(spoil), settings.to_config())
    inner = weighted(grid, settings)
    train(CompressedAggregation(inner, clipping=AdaptiveNorm(0.02, 0.8, 0.2)), grid, rounds=1)
    assert (inner.tally.answered, inner.tally.non_finite, inner.tally.failed) == (3, 1, {})


def test_why_a_client_failed_reaches_the_wrapped_strategy(writers: str) -> None:
    def fail(content: RecordDict) -> None:
        raise OSError("the disk is gone")

    settings = Settings(task="emnist_lr", data=writers, client_ids="a,b,c")
    grid = InProcessGrid(altered(fail), settings.to_config())
    inner = weighted(grid, settings)
    train(CompressedAggregation(inner, UNIFORM), grid, rounds=1)
    assert list(inner.tally.failed) == ["b"]
    assert "the disk is gone" in inner.tally.failed["b"]


def test_a_client_is_counted_once_whatever_it_says_of_its_norm(writers: str) -> None:
    def boast(content: RecordDict) -> None:
        content["compression"] = ConfigRecord({"clipped": 7})

    settings = Settings(task="emnist_lr", data=writers, client_ids="a,b,c")
    grid = InProcessGrid(altered(boast), settings.to_config())
    clipping = AdaptiveNorm(1e-4, 0.8, 0.2)
    aggregator = CompressedAggregation(weighted(grid, settings), clipping=clipping)
    train(aggregator, grid, rounds=1)
    assert aggregator.measurements["clipped_count"] == 3
    assert clipping.estimate == pytest.approx(1e-4 * math.exp(0.2 * 0.8))


def test_nothing_is_learnt_from_a_reply_that_the_strategy_refuses(writers: str) -> None:
    """Its arrays are as they should be, and its metrics are not."""
    learnt = []
    for ids in ("a,b,c", "a,c"):
        settings = Settings(task="emnist_lr", data=writers, client_ids=ids)
        grid = InProcessGrid(altered(lambda reply: reply.pop("metrics")), settings.to_config())
        inner = weighted(grid, settings)
        codec = "adaptive:budget=2000,threshold=100"
        clipping = AdaptiveNorm(0.02, 0.8, 0.2)
        aggregator = CompressedAggregation(inner, codec, clipping=clipping)
        train(aggregator, grid, rounds=1)
        learnt.append((aggregator.state(), aggregator.measurements))
    assert list(inner.tally.failed) == []
    assert learnt[0] == learnt[1]


def test_a_payload_larger_than_any_codec_makes_is_not_decoded(writers: str) -> None:
    settings = Settings(task="emnist_lr", data=writers, client_ids="a,b,c")
    grid = InProcessGrid(garbled(lambda a: with_data(a, bytes(10**6))), settings.to_config())
    inner = weighted(grid, settings)
    train(CompressedAggregation(inner, UNIFORM), grid, rounds=1)
    assert re.search(r"payload of 10\d+ bytes is over", inner.tally.failed["b"])
