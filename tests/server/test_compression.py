"""CompressedAggregation over the in-process grid, around our strategy and around Flower's own."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Strategy,
)

from client.app import app as client_app
from server.adaptive_norm import AdaptiveNorm, default_zeroing
from server.cohort import Cohort
from server.compression import CompressedAggregation, make_aggregator
from server.directory import Directory
from server.exchange import exchange
from server.initial import architecture_of
from server.replies import only
from server.strategy import WeightedFedAvg
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tasks.catalogue import load_task
from tests.conftest import Federate
from weights.named import NamedArrays, arrays_of, fingerprint, l2_norm
from weights.wire import WireError, claimed, pack, unpack

PARITY = Path(__file__).parents[1] / "data/parity"

# Every weight matrix of these small models is encoded, so that every path is taken.
UNIFORM = "uniform:bits=8,threshold=100"
RUN: dict[str, Any] = {"task": "emnist_lr", "rounds": 3, "cohort": "4", "eval_every": 0}


def weighted(grid: Grid, settings: Settings) -> WeightedFedAvg:
    """Our strategy over a grid of emnist_lr clients."""
    task = load_task("emnist_lr")
    model = task.model()
    arrays = arrays_of(model)
    directory = Directory.discover(grid)
    return WeightedFedAvg(
        arrays,
        list(arrays),
        server_optimizer="sgd:lr=1.0",
        weighting="examples",
        architecture=architecture_of(model),
        metrics=task.metrics,
        directory=directory,
        cohort=Cohort(directory, settings),
    )


def train(strategy: Strategy, grid: Grid, rounds: int = 3) -> NamedArrays:
    """The rounds of a strategy, without evaluation."""
    arrays = pack(arrays_of(load_task("emnist_lr").model()))
    for server_round in range(1, rounds + 1):
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        aggregated, _ = strategy.aggregate_train(server_round, exchange(grid, [*messages], 60.0))
        assert aggregated is not None
        arrays = aggregated
    return unpack(arrays, like=claimed(arrays))


def test_identity_gives_the_same_bits_as_no_wrapper(writers: str) -> None:
    settings = Settings(task="emnist_lr", data=writers, cohort="5", seed=3)
    models = []
    for wrapped in (False, True):
        grid = InProcessGrid(client_app, settings.to_config())
        strategy: Strategy = weighted(grid, settings)
        if wrapped:
            strategy = CompressedAggregation(strategy, "identity:threshold=0")
        models.append(fingerprint(train(strategy, grid)))
    assert models[0] == models[1]


def one_client_a_node(writers: str) -> InProcessGrid:
    """Flower's strategies know nodes, not clients: eight nodes that serve a client each."""
    settings = Settings(task="emnist_lr", data=writers, shuffle=False)
    nodes: list[UserConfig] = [{"partition-id": index, "num-partitions": 8} for index in range(8)]
    return InProcessGrid(client_app, settings.to_config(), nodes)


@pytest.mark.parametrize("kind", [FedAvg, FedAdam, FedMedian, FedTrimmedAvg, Krum, MultiKrum])
def test_flowers_strategies_serve_unchanged(kind: type[FedAvg], writers: str) -> None:
    for codec in ("identity:threshold=0", UNIFORM):
        grid = one_client_a_node(writers)
        strategy = CompressedAggregation(kind(fraction_evaluate=0.0), codec)
        model = train(strategy, grid)
        assert model["dense.weight"].shape == (10, 784)
        assert np.abs(model["dense.weight"]).max() > 0


def test_flowers_strategies_get_whole_and_finite_models() -> None:
    app = ClientApp()

    @app.train()
    def training(message: Message, context: Context) -> Message:
        value = float(context.node_config["value"])
        arrays = {"w": np.full(2, value, np.float32)} if value else {}
        metrics = MetricRecord({"num-examples": len(arrays)})
        return Message(RecordDict({"arrays": pack(arrays), "metrics": metrics}), reply_to=message)

    grid = InProcessGrid(app, {}, [{"value": value} for value in (1.0, 0.0, math.nan, 1.0)])
    model = {"w": np.array([3, 4], np.float32), "fixed": np.array([7], np.float32)}
    strategy = CompressedAggregation(FedAvg(fraction_evaluate=0.0), trained=["w"])
    messages = strategy.configure_train(1, pack(model), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, exchange(grid, messages, 60.0))
    assert arrays is not None
    mean = unpack(arrays, like=model)
    assert (mean["w"].tolist(), mean["fixed"].tolist()) == ([2, 3], [7])


def test_flowers_fedavg_inside_equals_ours(writers: str) -> None:
    settings = Settings(task="emnist_lr", data=writers, cohort="all", shuffle=False)
    ours_grid = InProcessGrid(client_app, settings.to_config())
    ours = train(CompressedAggregation(weighted(ours_grid, settings), UNIFORM), ours_grid)
    inner = FedAvg(fraction_evaluate=0.0)
    theirs = train(CompressedAggregation(inner, "identity"), one_client_a_node(writers))
    np.testing.assert_allclose(ours["dense.weight"], theirs["dense.weight"], atol=2e-3)
    np.testing.assert_allclose(ours["dense.bias"], theirs["dense.bias"], atol=2e-3)


def test_an_undecoded_update_fails_loudly(writers: str) -> None:
    grid = one_client_a_node(writers)
    inner = FedAvg(fraction_evaluate=0.0)
    wrapper = CompressedAggregation(inner, UNIFORM)
    arrays = pack(arrays_of(load_task("emnist_lr").model()))
    messages = wrapper.configure_train(1, arrays, ConfigRecord(), grid)
    with pytest.raises(TypeError, match=r"fedferry\.uniform\.v1"):
        inner.aggregate_train(1, grid.send_and_receive(messages))


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


def test_the_clipping_norm_follows_the_share_of_clients_under_it(writers: str) -> None:
    settings = Settings(task="emnist_lr", data=writers, cohort="all", shuffle=False)
    grid = InProcessGrid(client_app, settings.to_config())
    inner = weighted(grid, settings)
    arrays = pack(arrays_of(load_task("emnist_lr").model()))
    messages = inner.configure_train(1, arrays, ConfigRecord(), grid)
    replies = [only(reply.content, ArrayRecord) for reply in exchange(grid, messages, 60.0)]
    norms = sorted(l2_norm(unpack(reply, like=inner.weights)) for reply in replies)
    between = (norms[2] + norms[3]) / 2  # three of eight are under it
    clipping = AdaptiveNorm(between, 0.8, 0.2)
    aggregator = CompressedAggregation(inner, clipping=clipping)
    train(aggregator, grid, rounds=1)
    assert aggregator.measurements == {"clipping_norm": between, "clipped_count": 5}
    assert clipping.estimate == pytest.approx(between * math.exp(-0.2 * (3 / 8 - 0.8)))


def test_what_an_aggregator_adapts() -> None:
    """TFF's robust aggregator zeroes and clips, its mean does neither."""
    inner = FedAvg()
    adapts = {
        name: make_aggregator(Settings(aggregator=name, codec="identity"), inner, []).state()
        for name in ("mean", "robust")
    }
    assert adapts == {"mean": {}, "robust": {"zeroing": 10.0, "clipping": 1.0}}


def test_evaluation_is_the_wrapped_strategys(writers: str) -> None:
    settings = Settings(task="emnist_lr", data=writers, cohort="5")
    grid = InProcessGrid(client_app, settings.to_config())
    inner = weighted(grid, settings)
    metrics = []
    wrapped = CompressedAggregation(inner, UNIFORM, broadcast_codec=UNIFORM)
    for strategy in (inner, wrapped):
        messages = strategy.configure_evaluate(1, pack(inner.weights), ConfigRecord(), grid)
        found = strategy.aggregate_evaluate(1, exchange(grid, [*messages], 60.0))
        assert found is not None
        metrics.append(dict(found))
    assert metrics[0] == metrics[1]
    assert inner.tally.answered == 5


def test_a_strategy_that_got_no_reply_gives_no_model(writers: str) -> None:
    grid = one_client_a_node(writers)
    strategy = CompressedAggregation(FedAvg(fraction_evaluate=0.0), UNIFORM)
    arrays = pack(arrays_of(load_task("emnist_lr").model()))
    strategy.configure_train(1, arrays, ConfigRecord(), grid)
    assert strategy.aggregate_train(1, []) == (None, None)


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


def test_messages_say_what_clients_are_to_do(writers: str) -> None:
    settings = Settings(task="emnist_lr", data=writers, client_ids="a,b", codec=UNIFORM, seed=3)
    grid = InProcessGrid(client_app, settings.to_config())
    inner = weighted(grid, settings)

    def asked(settings: Settings) -> list[object]:
        aggregator = make_aggregator(settings, inner, ["dense.weight"])
        messages = aggregator.configure_train(2, pack(inner.weights), ConfigRecord(), grid)
        return [message.content.get("compression") for message in messages]

    codecs = json.dumps({"dense.weight": UNIFORM})
    assert asked(settings) == [
        ConfigRecord({"codecs": codecs, "seed": [3, 2, index]}) for index in range(2)
    ]
    assert asked(replace(settings, codec="identity")) == [None, None]


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


def test_robust_run_is_tffs(tff_data: Path, federate: Federate) -> None:
    reference = json.loads((PARITY / "lr_robust.json").read_text())
    ours, arrays = federate(
        task="emnist_lr",
        data=str(tff_data / "digits_by_writer_train.h5"),
        client_ids=",".join(reference["clients"]),
        rounds=10,
        local_epochs=5,
        shuffle=False,
        client_optimizer="sgd:lr=0.02",
        aggregator="robust",
        eval_every=0,
    )
    for record, theirs in zip(ours["rounds"], reference["rounds"], strict=True):
        metrics = theirs["client_work"]["train"]
        assert record["train"]["loss"] == pytest.approx(metrics["loss"], abs=1e-4)
        assert record["train"]["accuracy"] == pytest.approx(
            metrics["sparse_categorical_accuracy"], abs=1e-4
        )
        check_measurements(record["aggregator"], theirs["aggregator"])
    final = np.load(PARITY / "lr_robust.npz")
    np.testing.assert_allclose(arrays["dense.weight"].T, final["w0"], rtol=1e-4, atol=1e-6)


def check_measurements(ours: dict[str, float], theirs: dict[str, Any]) -> None:
    assert ours["zeroing_norm"] == pytest.approx(theirs["zeroing_norm"], rel=1e-4)
    assert ours["zeroed_count"] == theirs["zeroed_count"]
    clipping = theirs["zeroing"]
    assert ours["clipping_norm"] == pytest.approx(clipping["clipping_norm"], rel=1e-4)
    assert ours["clipped_count"] == clipping["clipped_count"]


def test_compressed_run_is_tffs(tff_data: Path, federate: Federate) -> None:
    reference = json.loads((PARITY / "cnn_compression_lr0.1_e5.json").read_text())
    ours, _ = federate(
        task="emnist_cnn",
        data=str(tff_data / "digits_by_writer_train.h5"),
        init=str(tff_data.parent / "parity/emnist_cnn_init.h5"),
        client_ids=",".join(reference["clients"]),
        rounds=5,
        local_epochs=5,
        shuffle=False,
        client_optimizer="sgd:lr=0.1",
        aggregator="compression",
        codec="uniform:bits=8",
        eval_every=0,
    )
    for record, theirs in zip(ours["rounds"], reference["rounds"], strict=True):
        accuracy = theirs["client_work"]["train"]["sparse_categorical_accuracy"]
        assert record["train"]["accuracy"] == pytest.approx(accuracy, abs=0.01)
        check_measurements(record["aggregator"], theirs["aggregator"])
        assert record["comm"]["aggregated_bits"] / 8 / 10 <= 1_690_000


@pytest.mark.parametrize(
    "codec",
    [
        "topk:fraction=0.05,feedback=true,threshold=100",
        "step:bits=2,rounding=nearest,feedback=true,threshold=100",
        "adaptive:budget=2000,threshold=100",
        UNIFORM,
    ],
)
def test_stopped_and_resumed_equals_straight(codec: str, writers: str, federate: Federate) -> None:
    settings = {**RUN, "data": writers, "aggregator": "compression", "codec": codec, "rounds": 4}
    straight, wanted = federate("straight", **settings)
    federate("stopped", **settings | {"rounds": 2})
    resumed, got = federate("stopped", **settings, resume=True)
    assert fingerprint(got) == fingerprint(wanted)
    for one, other in zip(straight["rounds"], resumed["rounds"], strict=True):
        assert one["aggregator"] == other["aggregator"]
        assert one["comm"] == other["comm"]


def test_error_feedback_sends_later_what_was_lost(writers: str, federate: Federate) -> None:
    settings = {**RUN, "data": writers, "cohort": "all", "rounds": 12}
    _, exact = federate("exact", **settings)
    distances = {}
    for feedback in ("true", "false"):
        codec = f"topk:fraction=0.02,feedback={feedback},threshold=100"
        _, arrays = federate(feedback, **settings, codec=codec)
        lost = arrays["dense.weight"] - exact["dense.weight"]
        distances[feedback] = float(np.linalg.norm(lost))
    assert distances["true"] < 0.85 * distances["false"]


def test_broadcast_codec_saves_bits_and_keeps_the_exact_model(
    writers: str, federate: Federate
) -> None:
    plain, _ = federate("plain", **RUN, data=writers)
    coded, arrays = federate("coded", **RUN, data=writers, broadcast_codec=UNIFORM)
    for one, other in zip(plain["rounds"], coded["rounds"], strict=True):
        assert other["comm"]["broadcasted_bits"] < 0.3 * one["comm"]["broadcasted_bits"]
        assert other["comm"]["aggregated_bits"] == one["comm"]["aggregated_bits"]
        assert other["train"]["loss"] == pytest.approx(one["train"]["loss"], rel=0.02)
    # 256 levels a tensor is what a model that went through the codec would have.
    assert len(np.unique(arrays["dense.weight"])) > 1000


def test_a_message_without_config_passes_the_mod(writers: str) -> None:
    settings = Settings(task="emnist_lr", data=writers, client_ids="a")
    grid = InProcessGrid(client_app, settings.to_config())
    inner = weighted(grid, settings)
    arrays = pack(inner.weights)
    [message] = inner.configure_train(1, arrays, ConfigRecord(), grid)
    [reply] = grid.send_and_receive([message])
    assert not reply.has_error()
    assert {a.stype for a in reply.content.array_records["arrays"].values()} == {"numpy.ndarray"}


def test_replies_without_a_record_are_refused() -> None:
    with pytest.raises(WireError):
        only(RecordDict({"a": ArrayRecord(), "b": ArrayRecord()}), ArrayRecord)


def test_a_codec_that_encodes_nothing_is_warned_of(
    writers: str, federate: Federate, caplog: pytest.LogCaptureFixture
) -> None:
    federate("all", **RUN, data=writers, codec=UNIFORM)
    assert "encodes nothing" not in caplog.text
    said = "the codec encodes nothing: no tensor has over 20000 elements"
    for rounds in (1, 3):
        caplog.clear()
        federate(f"none {rounds}", **RUN | {"rounds": rounds}, data=writers, codec="uniform:bits=8")
        assert caplog.text.count(said) == 1
