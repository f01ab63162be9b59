"""Whom a node serves, by its node config."""

import h5py
import numpy as np
import pytest
from flwr.app import UserConfig

from client.app import app as client_app
from server.directory import Directory
from settings.errors import InputError
from simulation.grid import InProcessGrid


def nodes(data: str, *configs: UserConfig) -> InProcessGrid:
    return InProcessGrid(client_app, {"task": "emnist_lr", "data": data}, configs)


def served(grid: InProcessGrid) -> list[list[str]]:
    """The clients of each node."""
    node_of = Directory.discover(grid).node_of
    return [[c for c, at in node_of.items() if at == node] for node in grid.get_node_ids()]


def test_shares_and_named_clients(writers: str) -> None:
    assert served(nodes(writers, {})) == [[*"abcdefgh"]]
    halves: list[UserConfig] = [{"partition-id": i, "num-partitions": 2} for i in (1, 0)]
    assert served(nodes(writers, *halves)) == [[*"bdfh"], [*"aceg"]]
    named: list[UserConfig] = [{"client-ids": "c"}, {"client-ids": "h, a"}]
    assert served(nodes(writers, *named)) == [["c"], ["a", "h"]]


def test_a_node_with_a_file_of_its_own(writers: str, tmp_path: object) -> None:
    own = f"{tmp_path}/own_train.h5"
    with h5py.File(own, "w") as file:
        for name in "xy":
            file[f"examples/{name}/label"] = np.zeros(3, np.int32)
            file[f"examples/{name}/pixels"] = np.zeros((3, 28, 28), np.float32)
    configs: list[UserConfig] = [{"data": own}, {"client-ids": "a,b"}]
    assert served(nodes(writers, *configs)) == [["x", "y"], ["a", "b"]]
    assert served(nodes(writers, {"data": own, "client-ids": "y"})) == [["y"]]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"client-ids": "a,zoe"}, "unknown client id in the node config 'zoe'"),
        ({"data": "/no/such.h5"}, "/no/such.h5: no such file"),
        ({"client_ids": "a"}, "unknown node config key 'client_ids': .*client-ids"),
        ({"client-ids": "a", "partition-id": 0, "num-partitions": 1}, "not both"),
        ({"partition-id": 2, "num-partitions": 2}, "partition-id 2 must be under"),
    ],
)
def test_mistakes_in_a_node_config(config: UserConfig, said: str, writers: str) -> None:
    with pytest.raises(InputError, match=said):
        served(nodes(writers, config))


def test_clients_of_two_nodes_may_not_overlap(writers: str) -> None:
    with pytest.raises(InputError, match="two nodes serve client 'a'"):
        served(nodes(writers, {"client-ids": "a,b"}, {"client-ids": "a"}))
