"""Push and pull: early closing, deadlines, duplicates; and what a run makes of too few replies."""

import time
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from server.exchange import exchange
from server.post import error_reason
from settings.errors import InputError
from simulation.grid import InProcessGrid
from tests.conftest import Federate


def grid_of(answer: Callable[[int], None], nodes: int) -> InProcessGrid:
    """A grid whose nodes answer queries after `answer(node number)`."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        answer(int(context.node_config["number"]))
        return Message(RecordDict({"config": ConfigRecord()}), reply_to=message)

    return InProcessGrid(app, {}, [{"number": number} for number in range(nodes)])


def questions(grid: InProcessGrid) -> list[Message]:
    return [Message(RecordDict(), node_id, "query") for node_id in grid.get_node_ids()]


def test_a_round_closes_when_enough_have_answered() -> None:
    called: list[int] = []
    grid = grid_of(called.append, 5)
    assert len(list(exchange(grid, questions(grid), 60.0, enough=3))) == 3
    assert called == [0, 1, 2]


def test_errors_are_passed_on_but_are_not_answers() -> None:
    def fail_first(number: int) -> None:
        if number == 0:
            raise RuntimeError("no\nmemory left")

    grid = grid_of(fail_first, 5)
    replies = list(exchange(grid, questions(grid), 60.0, enough=3))
    assert [reply.has_error() for reply in replies] == [True, False, False, False]
    assert error_reason(replies[0]).startswith("memory left (test_exchange.py, line ")


def test_an_error_without_a_reason_has_its_number() -> None:
    grid = grid_of(lambda number: None, 1)
    [message] = questions(grid)
    grid.push_messages([message])
    assert error_reason(Message(Error(3), reply_to=message)) == "error 3 without a reason"
    assert error_reason(Message(Error(3, "a\n b \n"), reply_to=message)) == "b"
    for flowers, said in (
        ("<class 'settings.errors.InputError'>:<'a.h5: no such file'>", "a.h5: no such file"),
        ("<class 'ZeroDivisionError'>:<'division by zero'>", "ZeroDivisionError: division by zero"),
        ("<class 'KeyError'>:<''a''>", "KeyError: 'a'"),
    ):
        assert error_reason(Message(Error(3, flowers), reply_to=message)) == said


def test_a_deadline_ends_the_waiting() -> None:
    grid = grid_of(lambda number: time.sleep(0.2), 5)
    assert 1 <= len(list(exchange(grid, questions(grid), 0.3))) < 5


def test_what_nobody_waits_for_is_not_kept() -> None:
    """With over-selection, every round would leave its model behind."""
    grid = grid_of(lambda number: None, 5)
    assert len(list(exchange(grid, questions(grid), 60.0, enough=3))) == 3
    assert not grid._pending


def test_a_silent_grid_is_not_waited_for_longer_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of(lambda number: None, 1)
    monkeypatch.setattr(grid, "pull_messages", lambda ids: [])
    started = time.monotonic()
    assert list(exchange(grid, questions(grid), 0.2)) == []
    assert time.monotonic() - started < 5


def test_a_reply_is_yielded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(lambda number: None, 3)
    pull = grid.pull_messages

    def twice(ids: Iterable[str]) -> list[Message]:
        return [*(replies := pull(ids)), *replies]

    monkeypatch.setattr(grid, "pull_messages", twice)
    assert len(list(exchange(grid, questions(grid), 60.0))) == 3


def test_replies_to_messages_from_before_a_kill_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if a grid handed them out: they answer messages that nobody waits for."""
    grid = grid_of(lambda number: None, 3)
    before = set(grid.push_messages(questions(grid)))
    pull = grid.pull_messages
    monkeypatch.setattr(grid, "pull_messages", lambda ids: pull({*ids, *before}))
    sent = questions(grid)
    replies = list(exchange(grid, sent, 60.0))
    expected = {message.metadata.message_id for message in sent}
    assert {reply.metadata.reply_to_message_id for reply in replies} == expected


def test_what_the_grid_does_not_take_is_an_error_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(lambda number: None, 3)
    push = grid.push_messages

    def some(messages: Iterable[Message]) -> list[str | None]:
        first, *rest = push(messages)
        del grid._pending[first]
        return [None, *rest]

    monkeypatch.setattr(grid, "push_messages", some)
    sent = questions(grid)
    refused, *others = exchange(grid, sent, 60.0)
    assert error_reason(refused) == "the SuperLink did not take the message"
    assert refused.metadata.reply_to_message_id == sent[0].metadata.message_id
    assert [reply.has_error() for reply in others] == [False, False]


def test_nodes_of_a_simulation_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """They work on their messages side by side in Flower's: an answer says nothing about another message."""
    monkeypatch.setattr("server.exchange._QUESTION", 0.05)
    called: list[int] = []
    grid = grid_of(called.append, 1)
    push, pushed = grid.push_messages, []

    def watched(messages: Iterable[Message]) -> Iterable[str]:
        pushed.extend(sent := list(messages))
        return push(sent)

    monkeypatch.setattr(grid, "push_messages", watched)
    pull = grid.pull_messages
    begun = time.monotonic()
    monkeypatch.setattr(
        grid, "pull_messages", lambda ids: pull(ids) if time.monotonic() > begun + 0.5 else []
    )
    assert len(list(exchange(grid, questions(grid), 60.0))) == 1
    assert called == [0]
    assert len(pushed) == 1


def test_a_look_that_fails_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(lambda number: None, 4)
    pull = grid.pull_messages
    looks = 0

    def failing(ids: Iterable[str]) -> list[Message]:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise ValueError("no such record")
        return pull(ids)

    monkeypatch.setattr(grid, "pull_messages", failing)
    assert len(list(exchange(grid, questions(grid), 60.0))) == 4


def test_a_grid_that_keeps_failing_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(lambda number: None, 2)

    def broken(ids: Iterable[str]) -> list[Message]:
        raise ConnectionError("gone")

    monkeypatch.setattr(grid, "pull_messages", broken)
    with pytest.raises(ConnectionError):
        list(exchange(grid, questions(grid), 60.0))


@pytest.mark.parametrize("times", [1, 2])
def test_a_reply_that_the_superlink_lost_is_asked_for_again_once(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(lambda number: None, 3)
    pull = grid.pull_messages
    lost: list[str] = []

    def losing(ids: Iterable[str]) -> list[Message]:
        replies = pull(ids)
        if replies and replies[0].metadata.src_node_id == node and len(lost) < times:
            lost.append(replies[0].metadata.reply_to_message_id)
            error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "objects are unavailable")
            return [Message(metadata=replies[0].metadata, error=error)]  # type: ignore[call-overload]
        return replies

    node = grid.get_node_ids()[1]
    monkeypatch.setattr(grid, "pull_messages", losing)
    sent = questions(grid)
    replies = list(exchange(grid, sent, 60.0))
    assert len(lost) == times
    expected = {message.metadata.message_id for message in sent}
    assert {reply.metadata.reply_to_message_id for reply in replies} == expected
    assert len(replies) == 3
    assert sum(reply.has_error() for reply in replies) == (times == 2)


def test_over_selection(writers: str, federate: Federate) -> None:
    settings = {"task": "emnist_lr", "data": writers, "rounds": 2, "cohort": "4", "eval_every": 0}
    over, _ = federate(**settings, over_select=1.3)
    for record in over["rounds"]:
        comm = record["comm"]
        assert (comm["asked"], comm["answered"], comm["late"]) == (6, 4, 2)
        assert comm["skipped"] == 0


@pytest.mark.parametrize(("least", "skipped"), [(2, 0), (3, 1)])
def test_a_round_with_too_few_replies_is_skipped(
    least: int, skipped: int, spoilt: Callable[..., str], federate: Federate
) -> None:
    """Of three clients one fails."""
    run, arrays = federate(
        task="emnist_lr",
        data=spoilt("c", "label", -1),
        rounds=2,
        client_ids="a,b,c",
        eval_every=0,
        min_replies=least,
    )
    assert [record["comm"]["skipped"] for record in run["rounds"]] == [skipped] * 2
    assert (np.abs(arrays["dense.weight"]).max() == 0) == skipped


def test_more_replies_than_clients_are_not_waited_for(writers: str, federate: Federate) -> None:
    settings = {"task": "emnist_lr", "data": writers, "cohort": "4", "over_select": 2.0}
    with pytest.raises(InputError, match="--min-replies 5 is over the 4 clients"):
        federate(**settings, min_replies=5)
