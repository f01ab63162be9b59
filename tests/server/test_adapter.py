"""What Flower's own strategies get and give inside the wrapper."""

import math
from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg

from client.mods import compress
from server.adaptive_norm import AdaptiveNorm
from server.compression import CompressedAggregation
from server.exchange import exchange
from simulation.grid import InProcessGrid
from weights.named import NamedArrays
from weights.wire import pack, unpack

MODEL: NamedArrays = {
    "w": np.array([3, 4], np.float32),
    "fixed": np.array([7], np.float32),
    "seen": np.array(5, np.int64),
}


def one_round(strategy: CompressedAggregation, values: Sequence[float]) -> ArrayRecord:
    """The new model, of clients whose updates hold a value each; 0 has no data."""
    app = ClientApp()

    @app.train(mods=[compress])
    def training(message: Message, context: Context) -> Message:
        value = float(context.node_config["value"])
        arrays = {"w": np.full(2, value, np.float32)} if value else {}
        metrics = MetricRecord({"num-examples": len(arrays)})
        return Message(RecordDict({"arrays": pack(arrays), "metrics": metrics}), reply_to=message)

    grid = InProcessGrid(app, {}, [{"value": value} for value in values])
    messages = strategy.configure_train(1, pack(MODEL), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, exchange(grid, messages, 60.0))
    assert arrays is not None
    return arrays


def test_they_get_whole_and_finite_models() -> None:
    strategy = CompressedAggregation(FedAvg(fraction_evaluate=0.0), trained=["w"])
    arrays = one_round(strategy, (1.0, 0.0, math.nan, 1.0))
    assert {name: array.numpy().tolist() for name, array in arrays.items()} == {
        "w": [2, 3],
        "fixed": [7],
        "seen": 5,
    }


def test_the_model_keeps_its_dtypes() -> None:
    strategy = CompressedAggregation(FedAdam(fraction_evaluate=0.0), trained=["w"])
    model = unpack(one_round(strategy, (1.0, 2.0)), like=MODEL)
    assert (model["w"] < MODEL["w"]).all()


def test_nothing_is_learnt_from_an_update_that_is_not_finite() -> None:
    clipping = AdaptiveNorm(1.0, 0.8, 0.2)
    inner = FedAvg(fraction_evaluate=0.0)
    strategy = CompressedAggregation(inner, trained=["w"], clipping=clipping)
    one_round(strategy, (9.0, math.nan, 9.0))
    # None of two is under the norm; the third would say that it is.
    assert clipping.estimate == math.exp(0.2 * 0.8)
    assert strategy.measurements["clipped_count"] == 2
