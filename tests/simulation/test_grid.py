"""The in-process grid does what a SuperLink with SuperNodes does."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg

from simulation.grid import InProcessGrid

Handler = Callable[[Message, Context], RecordDict]


def app_of(handler: Handler, **options: Any) -> ClientApp:
    app = ClientApp(**options)

    def answer(message: Message, context: Context) -> Message:
        return Message(handler(message, context), reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    return app


def grid_of(handler: Handler, nodes: int = 1, **options: Any) -> InProcessGrid:
    configs: list[UserConfig] = [{"partition-id": index} for index in range(nodes)]
    return InProcessGrid(app_of(handler, **options), {"size": 3}, configs)


def content(**values: Any) -> RecordDict:
    arrays = ArrayRecord({"w": _array([1.0, 2.0])})
    return RecordDict({"arrays": arrays, "config": ConfigRecord(values)})


def _array(values: list[float]) -> Any:
    from flwr.app import Array

    return Array(np.array(values, np.float32))


def send(
    grid: InProcessGrid, *contents: RecordDict, node: int | None = None, ttl: float | None = None
) -> list[Message]:
    node = grid.get_node_ids()[0] if node is None else node
    messages = [Message(part, node, MessageType.TRAIN, ttl=ttl) for part in contents]
    return grid.send_and_receive(messages)


def config_of(message: Message) -> dict[str, Any]:
    (record,) = message.content.config_records.values()
    return dict(record)


def echo(message: Message, context: Context) -> RecordDict:
    return message.content


def test_every_message_has_an_id_and_its_reply_names_it() -> None:
    grid = grid_of(echo)
    node = grid.get_node_ids()[0]
    messages = [Message(content(number=n), node, MessageType.TRAIN) for n in range(3)]
    ids = list(grid.push_messages(messages))
    assert [message.metadata.message_id for message in messages] == ids
    assert len(set(ids)) == 3
    replies = [reply for _ in ids for reply in grid.pull_messages(ids)]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert [config_of(reply)["number"] for reply in replies] == [0, 1, 2]
    assert len({reply.metadata.message_id for reply in replies} | set(ids)) == 6
    assert {reply.metadata.src_node_id for reply in replies} == {node}
    assert grid.pull_messages(ids) == []


def test_only_the_replies_asked_for_are_made() -> None:
    called: list[int] = []

    def handler(message: Message, context: Context) -> RecordDict:
        called.append(config_of(message)["number"])
        return message.content

    grid = grid_of(handler)
    node = grid.get_node_ids()[0]
    messages = [Message(content(number=n), node, MessageType.TRAIN) for n in range(3)]
    ids = list(grid.push_messages(messages))
    assert called == []
    (reply,) = grid.pull_messages(ids[1:2])
    assert called == [1]
    assert config_of(reply)["number"] == 1
    assert grid.pull_messages(["unknown"]) == []


def test_nobody_sees_another_ones_changes() -> None:
    """FedAvg puts one RecordDict into all messages: each client has its own."""
    seen: list[tuple[list[float], dict[str, Any], list[str]]] = []

    def handler(message: Message, context: Context) -> RecordDict:
        arrays = message.content.array_records["arrays"]
        config = message.content.config_records["config"]
        seen.append((arrays["w"].numpy().tolist(), deepcopy(dict(config)), [*arrays]))
        arrays["w"] = _array([-1.0, -1.0])
        arrays["extra"] = _array([0.0])
        config["number"] = 99
        config["list"].append(7)  # type: ignore[union-attr, arg-type]
        message.content["more"] = MetricRecord({"x": 1})
        return RecordDict()

    grid = grid_of(handler)
    shared = content(number=1, list=[5])
    send(grid, shared, shared)
    assert seen == [([1.0, 2.0], {"number": 1, "list": [5]}, ["w"])] * 2
    assert dict(shared.config_records["config"]) == {"number": 1, "list": [5]}
    assert list(shared) == ["arrays", "config"]
    assert shared.array_records["arrays"]["w"].numpy().tolist() == [1.0, 2.0]


def test_what_is_pushed_is_what_arrives() -> None:
    grid = grid_of(echo)
    pushed = content(number=1)
    ids = grid.push_messages([Message(pushed, grid.get_node_ids()[0], MessageType.TRAIN)])
    pushed.config_records["config"]["number"] = 2
    (reply,) = grid.pull_messages(ids)
    assert config_of(reply)["number"] == 1


def count(message: Message, context: Context) -> RecordDict:
    """Counts a node's messages in its state; fails, after counting, when told to."""
    record = context.state.config_records.setdefault("count", ConfigRecord({"n": 0}))
    record["n"] = int(record["n"]) + 1  # type: ignore[arg-type]
    if config_of(message).get("fail"):
        raise RuntimeError("told to fail")
    return RecordDict({"count": ConfigRecord({"n": record["n"], "node": context.node_id})})


def test_a_node_keeps_its_state_and_nodes_have_their_own() -> None:
    grid = grid_of(count, nodes=2)
    first, second = grid.get_node_ids()
    replies = send(grid, content(), content(), node=first)
    replies += send(grid, content(), node=second) + send(grid, content(), node=first)
    assert [(config_of(reply)["node"], config_of(reply)["n"]) for reply in replies] == [
        (first, 1),
        (first, 2),
        (second, 1),
        (first, 3),
    ]


def test_a_reply_is_not_a_way_into_the_nodes_state() -> None:
    def handler(message: Message, context: Context) -> RecordDict:
        if "kept" not in context.state:
            context.state["kept"] = ConfigRecord({"n": 1})
        return RecordDict({"kept": context.state["kept"]})

    grid = grid_of(handler)
    (first,) = send(grid, content())
    first.content.config_records["kept"]["n"] = 99
    (second,) = send(grid, content())
    assert config_of(second)["n"] == 1


def test_an_exception_is_an_error_reply_and_undoes_the_messages_state() -> None:
    grid = grid_of(count)
    one, failed, two = send(grid, content(), content(fail=True), content())
    assert failed.has_error()
    assert failed.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert failed.error.reason is not None
    assert "told to fail" in failed.error.reason
    assert [config_of(one)["n"], config_of(two)["n"]] == [1, 2]


def test_other_failures_are_error_replies() -> None:
    grid = grid_of(echo)
    node = grid.get_node_ids()[0]
    (nowhere,) = send(grid, content(), node=node + 100)
    assert nowhere.error.code == ErrorCode.NODE_UNAVAILABLE
    (unregistered,) = grid.send_and_receive([Message(content(), node, "query.no_such")])
    assert "no_such" in str(unregistered.error.reason)
    nothing = InProcessGrid(lambda message, context: None, {})  # type: ignore[arg-type]
    (reply,) = send(nothing, content())
    assert "NoneType, not a Message" in str(reply.error.reason)


def test_time_to_live() -> None:
    called: list[str] = []

    def handler(message: Message, context: Context) -> RecordDict:
        called.append("")
        return RecordDict()

    grid = grid_of(handler)
    (fine,) = send(grid, content(), ttl=2000)
    assert not fine.has_error()
    old = Message(content(), grid.get_node_ids()[0], MessageType.TRAIN, ttl=10)
    old.metadata.__dict__["_created_at"] -= 100
    (expired,) = grid.send_and_receive([old])
    assert expired.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert len(called) == 1


def test_a_reply_that_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    grid = grid_of(lambda message, context: now.append(now.pop() + 500) or RecordDict())  # type: ignore[func-returns-value]
    early = Message(content(), grid.get_node_ids()[0], MessageType.TRAIN, ttl=100)
    late = Message(content(), grid.get_node_ids()[0], MessageType.TRAIN, ttl=600)
    created = early.metadata.created_at
    monkeypatch.setattr("simulation.grid.time.time", lambda: created + now[0])
    (reply,) = grid.send_and_receive([early])
    assert reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    now[0] = 0.0
    late.metadata.__dict__["_created_at"] = created
    (reply,) = grid.send_and_receive([late])
    assert not reply.has_error()


def test_what_the_client_does_to_metadata_stays_there() -> None:
    def handler(message: Message, context: Context) -> RecordDict:
        message.metadata.ttl = 1.0
        message.metadata.message_type = "train.other"
        return RecordDict()

    grid = grid_of(handler)
    message = Message(content(), grid.get_node_ids()[0], MessageType.TRAIN, ttl=77.0)
    (reply,) = grid.send_and_receive([message])
    assert not reply.has_error()
    assert (message.metadata.ttl, message.metadata.message_type) == (77.0, "train")


def test_mods_and_lifespan_run() -> None:
    order: list[str] = []

    def mod(name: str) -> Callable[[Message, Context, ClientAppCallable], Message]:
        def run(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            order.append(f"{name} in")
            reply = call_next(message, context)
            order.append(f"{name} out")
            return reply

        return run

    app = ClientApp(mods=[mod("global")])

    @app.train(mods=[mod("train")])
    def train(message: Message, context: Context) -> Message:
        order.append("train")
        return Message(RecordDict(), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        order.append("evaluate")
        return Message(RecordDict(), reply_to=message)

    @app.lifespan()
    def lifespan(context: Context) -> Iterator[None]:
        order.append("enter")
        yield
        order.append("exit")

    grid = InProcessGrid(app, {})
    node = grid.get_node_ids()[0]
    grid.send_and_receive([Message(content(), node, MessageType.TRAIN)])
    trained = ["global in", "train in", "train", "train out", "global out"]
    assert order == ["enter", *trained, "exit"]
    order.clear()
    grid.send_and_receive([Message(content(), node, MessageType.EVALUATE)])
    assert order == ["enter", "global in", "evaluate", "global out", "exit"]


def test_configs_reach_the_client_and_cannot_be_changed_there() -> None:
    seen: list[tuple[Any, Any]] = []

    def handler(message: Message, context: Context) -> RecordDict:
        seen.append((context.run_config["size"], context.node_config["partition-id"]))
        context.run_config["size"] = 9
        context.node_config["partition-id"] = 9
        return RecordDict()

    grid = grid_of(handler, nodes=2)
    for node in grid.get_node_ids():
        send(grid, content(), content(), node=node)
    assert seen == [(3, 0), (3, 0), (3, 1), (3, 1)]


def test_a_deadline_leaves_replies_out() -> None:
    grid = grid_of(echo)
    message = Message(content(), grid.get_node_ids()[0], MessageType.TRAIN)
    assert grid.send_and_receive([message], timeout=0) == []


def test_flowers_own_strategy_runs_on_it() -> None:
    """FedAvg, unchanged: two nodes that add their partition's number, weighted 1 to 3."""

    def handler(message: Message, context: Context) -> RecordDict:
        partition = int(context.node_config["partition-id"])
        metrics = MetricRecord({"num-examples": 1 + 2 * partition, "loss": float(partition)})
        if message.metadata.message_type == MessageType.EVALUATE:
            return RecordDict({"metrics": metrics})
        (arrays,) = message.content.array_records.values()
        w = arrays["w"].numpy() + partition
        return RecordDict({"arrays": ArrayRecord({"w": _array(w.tolist())}), "metrics": metrics})

    grid = grid_of(handler, nodes=2)
    initial = ArrayRecord({"w": _array([1.0, 2.0])})
    result = FedAvg().start(grid=grid, initial_arrays=initial, num_rounds=2, timeout=60)
    assert result.arrays["w"].numpy().tolist() == [1.0 + 2 * 0.75, 2.0 + 2 * 0.75]
    assert result.train_metrics_clientapp[2]["loss"] == 0.75
    assert result.evaluate_metrics_clientapp[2]["loss"] == 0.75
    assert initial["w"].numpy().tolist() == [1.0, 2.0]
