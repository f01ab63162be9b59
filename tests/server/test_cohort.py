"""Who takes part: discovery and sampling."""

from collections import Counter
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from client.app import app as client_app
from server.cohort import Cohort, Directory
from settings.errors import InputError
from settings.schema import Settings
from simulation.grid import InProcessGrid

TWENTY = Directory({f"c{index:02}": 2 for index in range(20)})


def cohort(**values: Any) -> Cohort:
    return Cohort(TWENTY, Settings(**values))


def test_samples_without_replacement_and_sorted() -> None:
    drawn = [cohort(cohort="5", seed=3).train(server_round) for server_round in range(1, 200)]
    assert all(len(set(ids)) == 5 and ids == sorted(ids) for ids in drawn)
    counts = Counter(client_id for ids in drawn for client_id in ids)
    assert set(counts) == set(TWENTY.node_of)
    # 199 rounds of 5 of 20: 50 each, give or take 6.
    assert all(20 < count < 80 for count in counts.values())


def test_a_round_draws_the_same_whenever_it_is_asked() -> None:
    one, other = cohort(cohort="5", seed=3), cohort(cohort="5", seed=3)
    assert [one.train(n) for n in (1, 2, 3)] == [other.train(n) for n in (3, 2, 1)][::-1]
    assert [one.train(n) for n in (1, 2, 3)] != [
        cohort(cohort="5", seed=4).train(n) for n in (1, 2, 3)
    ]
    assert one.train(1) != one.train(2)


def test_everybody() -> None:
    assert cohort(cohort="all").train(1) == list(TWENTY.node_of)
    assert cohort(cohort="1000").train(1) == list(TWENTY.node_of)


def test_named_clients_train_in_every_round() -> None:
    named = cohort(client_ids="c03, c01", cohort="all")
    assert named.train(1) == named.train(2) == ["c03", "c01"]
    assert named.evaluate() == ["c03", "c01"]
    assert len(cohort(client_ids="c03", eval_cohort="4").evaluate()) == 4


def test_the_evaluation_cohort_is_drawn_once() -> None:
    one = cohort(cohort="5", eval_cohort="7")
    assert len(one.evaluate()) == 7
    assert one.evaluate() == one.evaluate()
    assert len(one.train(1)) == 5
    assert len(cohort(cohort="5").evaluate()) == 5
    assert cohort(cohort="5", eval_cohort="all").evaluate() == list(TWENTY.node_of)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cohort": "many"}, "--cohort must be a number of clients or all, not 'many'"),
        ({"cohort": "0"}, "--cohort 0 is an empty cohort"),
        ({"cohort": "-3"}, "--cohort -3 is an empty cohort"),
        ({"cohort": ""}, "--cohort must be a number of clients or all"),
        ({"eval_cohort": "1.5"}, "--eval-cohort must be a number of clients or all, not '1.5'"),
        ({"client_ids": "c01,c99"}, "unknown client id 'c99'"),
        ({"client_ids": "c01,c02,c01"}, "c01.*twice"),
    ],
)
def test_mistakes(values: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cohort(**values)


def test_discovery_divides_a_population_over_nodes(writers: str) -> None:
    nodes: list[UserConfig] = [{"partition-id": index, "num-partitions": 3} for index in range(3)]
    grid = InProcessGrid(client_app, {"task": "emnist_lr", "data": writers}, nodes)
    node_of = Directory.discover(grid).node_of
    assert list(node_of) == list("abcdefgh")
    first, second, third = grid.get_node_ids()
    assert [client_id for client_id, node in node_of.items() if node == second] == ["b", "e", "h"]
    assert Counter(node_of.values()) == {first: 3, second: 3, third: 2}


def test_data_that_cannot_be_opened_is_said() -> None:
    grid = InProcessGrid(client_app, {"task": "emnist_lr", "data": "/no/such.h5"})
    with pytest.raises(InputError, match=r"no such file: /no/such.h5"):
        Directory.discover(grid)


def announcing(*clients: list[str]) -> InProcessGrid:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        index = int(context.node_config["index"])
        said = ConfigRecord({"client-ids": clients[index]})
        said.update({"partition-id": index, "num-partitions": len(clients)})
        return Message(RecordDict({"clients": said}), reply_to=message)

    return InProcessGrid(app, {}, [{"index": index} for index in range(len(clients))])


def test_clients_are_where_they_say() -> None:
    grid = announcing(["x", "b"], [], ["a"])
    nodes = grid.get_node_ids()
    assert list(Directory.discover(grid).node_of.items()) == [
        ("a", nodes[2]),
        ("b", nodes[0]),
        ("x", nodes[0]),
    ]
    with pytest.raises(InputError, match="two nodes serve client 'b'"):
        Directory.discover(announcing(["a", "b"], ["b"]))
    with pytest.raises(InputError, match="the data holds no client"):
        Directory.discover(announcing([], []))
    with pytest.raises(InputError, match=r"partition-id \[0\] of 1: 0 are connected"):
        Directory.discover(announcing(), timeout=0.1)


def test_a_node_that_connects_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = announcing(["a"], ["b"], ["c"])
    nodes = grid.get_node_ids()
    looks = iter([nodes[:1], nodes[:2], nodes])
    monkeypatch.setattr(grid, "get_node_ids", lambda: next(looks, nodes))
    assert list(Directory.discover(grid).node_of) == ["a", "b", "c"]


def test_nodes_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = announcing(["a"], ["b"], ["c"])
    nodes = grid.get_node_ids()
    monkeypatch.setattr(grid, "get_node_ids", lambda: nodes[1:2])
    with pytest.raises(InputError, match=r"waited 1 s for nodes with partition-id \[0, 2\] of 3"):
        Directory.discover(grid, timeout=1.0)
