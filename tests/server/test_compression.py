"""CompressedAggregation over the in-process grid, around our strategy and around Flower's own."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    RecordDict,
    UserConfig,
)
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
from server.adaptive_norm import AdaptiveNorm
from server.compression import CompressedAggregation, make_aggregator
from server.exchange import exchange
from server.replies import only
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tasks.catalogue import load_task
from tests.server.wrapped import UNIFORM, train, weighted
from weights.named import arrays_of, fingerprint, l2_norm
from weights.wire import WireError, pack, unpack


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
