"""Clients side by side on threads, against the same clients one after the other."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from zlib import crc32

import pytest
import torch
from flwr.app import Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.crew import Crew
from client.update import Result
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tasks.stream import Batch


@pytest.fixture
def messages() -> list[Message]:
    grid = InProcessGrid(ClientApp(), {})
    sent = [Message(RecordDict(), 7, MessageType.TRAIN) for _ in range(6)]
    grid.push_messages(sent)
    return sent


def crew(workers: int) -> Crew:
    made = Crew()
    made.arrange(Settings(workers=workers))
    return made


def read(message: Message) -> Iterator[Batch]:
    torch.default_generator.manual_seed(crc32(message.metadata.message_id.encode()))
    return iter([Batch(torch.ones(2, 3), torch.zeros(2))])


def work(model: nn.Module, batches: Iterable[Batch]) -> Result:
    total = sum(float(model(batch.inputs).sum()) for batch in batches)
    return {}, {"loss": [total, threading.get_ident()]}


def results(
    workers: int,
    messages: list[Message],
    model: nn.Module,
    do: Callable[[nn.Module, Iterable[Batch]], Result] = work,
) -> list[Result]:
    made = crew(workers)
    return [
        made.result(message, messages[index + 1 :], model, read, do)
        for index, message in enumerate(messages)
    ]


def test_work_is_spread_over_no_more_threads_than_there_is_work() -> None:
    def of_crews() -> int:
        return sum(thread.name.startswith("client") for thread in threading.enumerate())

    done: list[int] = []
    before = of_crews()
    made = crew(workers=200)
    made.spread(done.append, [1, 2, 3])
    made.spread(done.append, [])
    assert sorted(done) == [1, 2, 3]
    assert of_crews() - before <= 2


def test_a_model_that_draws_is_worked_on_one_client_at_a_time(messages: list[Message]) -> None:
    model = nn.Dropout(0.5)
    alone = [work(model, read(message))[1]["loss"][0] for message in messages]
    assert len(set(alone)) > 1
    calls: list[object] = []

    def counted(model: nn.Module, batches: Iterable[Batch]) -> Result:
        calls.append(model)
        return work(model, batches)

    for workers in (1, 3):
        calls.clear()
        done = results(workers, messages, model, counted)
        assert len(calls) == len(messages) + 1  # once to see whether it draws
        assert [sums["loss"][0] for _, sums in done] == alone
        assert {sums["loss"][1] for _, sums in done} == {threading.get_ident()}


def test_a_client_without_data_does_not_say_whether_a_model_draws(messages: list[Message]) -> None:
    def sparse(message: Message) -> Iterator[Batch]:
        return iter([]) if message is messages[0] else read(message)

    def do(model: nn.Module, batches: Iterable[Batch]) -> Result:
        given = list(batches)
        return work(model, given) if given else ({}, {})

    made, model = crew(3), nn.Dropout(0.5)
    done = [made.result(m, messages[i + 1 :], model, sparse, do) for i, m in enumerate(messages)]
    assert done[0] == ({}, {})
    assert {sums["loss"][1] for _, sums in done[1:]} == {threading.get_ident()}


def test_so_many_at_once(messages: list[Message]) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(model: nn.Module, batches: Iterable[Batch]) -> Result:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        result = work(model, batches)
        time.sleep(0.05)
        with lock:
            running -= 1
        return result

    for workers in (1, 3):
        most = 0
        results(workers, messages, nn.Identity(), slow)
        assert most == workers


def test_the_longest_comes_next_when_no_more_will_come(messages: list[Message]) -> None:
    """The sixth client's four batches before the fifth one's two, but no earlier client's place."""
    sizes = [1, 1, 6, 6, 2, 4]
    batches = {m.metadata.message_id: size for m, size in zip(messages, sizes, strict=True)}
    started: list[int] = []

    def several(message: Message) -> Iterator[Batch]:
        size = batches[message.metadata.message_id]
        return iter([Batch(torch.full((1, 3), float(size)), torch.zeros(1))] * size)

    def slow(model: nn.Module, batches: Iterable[Batch]) -> Result:
        given = list(batches)
        started.append(len(given))
        time.sleep(0.02 * len(given))
        return {}, {"loss": [float(len(given)), 0.0]}

    made, model = crew(2), nn.Identity()
    for index, message in enumerate(messages):
        _, sums = made.result(message, messages[index + 1 :], model, several, slow)
        assert sums["loss"][0] == sizes[index]
    assert started == [1, 1, 6, 6, 4, 2]


@pytest.mark.parametrize(
    ("settings", "workers", "threads"),
    [
        (Settings(cohort="4"), 4, 2),
        (Settings(cohort="4", workers=1), 1, 2),
        (Settings(cohort="10"), 8, 1),
        (Settings(cohort="all"), 8, 1),
        (Settings(client_ids="a,b,c"), 4, 2),
        (Settings(cohort="1", workers=3), 3, 8),
    ],
    ids=str,
)
def test_threads_of_a_client_depend_on_the_cohort_alone(
    settings: Settings, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 8)  # of the machine
        made = Crew()
        made.arrange(settings)
    assert made._workers == workers
    assert made.alone(torch.get_num_threads) == threads
    assert torch.get_num_threads() == before
    torch.set_num_threads(before)  # MKL has one number for all threads


def test_what_a_peer_raises_is_raised_in_its_turn(messages: list[Message]) -> None:
    def broken(message: Message) -> Iterator[Batch]:
        if message in (messages[2], messages[4]):
            raise OSError(f"no data: {messages.index(message)}")
        return read(message)

    made, model = crew(2), nn.Identity()
    for index, message in enumerate(messages):
        peers = messages[index + 1 :]
        if index in (2, 4):
            with pytest.raises(OSError, match=f"no data: {index}"):
                made.result(message, peers, model, broken, work)
        else:
            assert made.result(message, peers, model, broken, work)[1]["loss"][0] == 6


def test_what_the_work_raises_is_raised_in_its_turn(messages: list[Message]) -> None:
    def failing(model: nn.Module, batches: Iterable[Batch]) -> Result:
        if float(next(iter(batches)).inputs[0, 0]) in (2, 4):
            raise ZeroDivisionError("no target")
        return {}, {"loss": [6.0, 0.0]}

    def numbered(message: Message) -> Iterator[Batch]:
        return iter([Batch(torch.full((2, 3), messages.index(message)), torch.zeros(2))])

    made, model = crew(2), nn.Identity()
    for index, message in enumerate(messages):
        peers = messages[index + 1 :]
        if index in (2, 4):
            with pytest.raises(ZeroDivisionError, match="no target"):
                made.result(message, peers, model, numbered, failing)
        else:
            assert made.result(message, peers, model, numbered, failing)[1]["loss"][0] == 6


@pytest.mark.parametrize("same_crew", [True, False])
def test_what_nobody_waits_for_is_given_up(same_crew: bool, messages: list[Message]) -> None:
    steps: dict[str, int] = {}

    def long(message: Message) -> Iterator[Batch]:
        for step in range(1000 if message in messages[2:5] else 1):
            steps[message.metadata.message_id] = step
            time.sleep(0.01)
            yield Batch(torch.ones(2, 3), torch.zeros(2))  # and draws no random number

    made, model = crew(2), nn.Identity()
    made.result(messages[0], [], model, long, work)
    made.result(messages[1], messages[2:5], model, long, work)
    if not same_crew:
        made.arrange(Settings(workers=1))
    made.result(messages[5], [], model, long, work)  # the next round: the three are late
    made._pool.shutdown()
    assert set(steps) == {message.metadata.message_id for message in messages}
    assert max(steps.values()) < 999


def test_no_more_are_begun_with_than_threads_will_soon_take(messages: list[Message]) -> None:
    begun: list[Message] = []

    def counted(message: Message) -> Iterator[Batch]:
        begun.append(message)
        return read(message)

    made, model = crew(1), nn.Identity()
    made.result(messages[0], messages[1:], model, counted, work)
    made.result(messages[1], messages[2:], model, counted, work)
    assert begun == messages[:3]
    made.result(messages[3], messages[4:], model, counted, work)  # nobody waits for the third
    assert begun == messages[:5]


def test_time_that_is_up_while_a_peer_is_read_is_the_messages_own(messages: list[Message]) -> None:
    def slow(message: Message) -> Iterator[Batch]:
        if message is messages[3]:
            raise TimeoutError("not done")
        return read(message)

    made, model = crew(2), nn.Identity()
    made.result(messages[0], messages[1:], model, slow, work)
    with pytest.raises(TimeoutError, match="not done"):
        made.result(messages[1], messages[2:], model, slow, work)
