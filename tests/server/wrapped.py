"""Our strategy over clients of emnist_lr, and rounds of it, for tests of what is wrapped around it."""

from flwr.app import (
    ConfigRecord,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Strategy,
)

from server.cohort import Cohort
from server.directory import Directory
from server.exchange import exchange
from server.initial import architecture_of
from server.strategy import WeightedFedAvg
from settings.schema import Settings
from tasks.catalogue import load_task
from weights.named import NamedArrays, arrays_of
from weights.wire import claimed, pack, unpack

# Every weight matrix of these small models is encoded, so that every path is taken.
UNIFORM = "uniform:bits=8,threshold=100"


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
