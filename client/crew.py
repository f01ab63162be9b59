"""Clients of a simulation side by side, each on its own core: that beats many threads inside one client."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from operator import length_hint
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from flwr.app import Message
from torch import nn

from client.update import Result
from settings.schema import Settings
from tasks.stream import Batch
from weights.threads import work_on

Read = Callable[[Message], Iterable[Batch]]
Work = Callable[[nn.Module, Iterable[Batch]], Result]
Item = TypeVar("Item")
T = TypeVar("T")


@dataclass
class _Job:
    """A client that a thread works on, or will.

    Attributes:
        batches: How many it has, where that is known.
    """

    batches: int = 0
    future: "Future[Result]" = field(default_factory=Future)
    given_up: threading.Event = field(default_factory=threading.Event)

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, until nobody waits for the result any more."""
        for batch in batches:
            if self.given_up.is_set():
                raise TimeoutError("nobody waits for this client any more")
            yield batch


class Crew:
    """Threads that begin with clients whose turn comes next.

    How many threads one client gets does not depend on how many clients are worked on at once, and its result on
    nothing else: a model comes out the same to the bit at any number of workers. Where a model draws random
    numbers, as dropout does, clients come one after the other: torch has one generator for all threads.
    """

    def __init__(self) -> None:
        self._cores = 0
        self._workers = self._threads = 0
        self._pool = ThreadPoolExecutor(1)
        self._jobs: dict[str, _Job] = {}
        self._waiting: list[tuple[_Job, Callable[[], Result]]] = []
        self._choosing = threading.Lock()
        self._more = True  # clients are still to come, after those that were begun with
        self._copies: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()
        self._drawing: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()

    def arrange(self, settings: Settings) -> None:
        """Have as many threads as the settings ask for."""
        self._cores = self._cores or torch.get_num_threads()
        threads = max(1, self._cores // (settings.clients_a_round() or self._cores))
        workers = settings.workers or max(1, self._cores // threads)
        if (workers, threads) != (self._workers, self._threads):
            self.give_up()
            self._pool.shutdown()
            self._pool = ThreadPoolExecutor(workers, "client", work_on, (threads,))
            self._workers, self._threads = workers, threads

    def alone(self, work: Callable[[], T]) -> T:
        """Do something on the threads that one client gets."""
        return self._pool.submit(work).result()

    def spread(self, work: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Do something with each item, here and on the other threads: work that leaves Python's lock, without torch.

        Here too, because two threads that wake up while a third one waits for them may share a core for milliseconds.
        """
        left = iter(items)

        def some() -> None:
            for item in left:
                work(item)

        threads = min(self._workers, len(items))
        helpers = [self._pool.submit(some) for _ in range(threads - 1)]
        try:
            some()
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()

    def result(
        self, message: Message, peers: Iterable[Message], model: nn.Module, read: Read, work: Work
    ) -> Result:
        """A message's result; meanwhile those that come next are begun with.

        Args:
            message: Whose turn it is.
            peers: Messages that ask the same of other clients, in the order of their turns.
            model: Every thread has a copy of it.
            read: A message's batches. If it raises for a peer, that is raised when it is the peer's turn.
            work: Trains or evaluates a model on batches; must overwrite the model's weights first.
        """
        own = message.metadata.message_id
        if own not in self._jobs:
            self.give_up()
            drawing = self._drawing.setdefault(model, {})
            kind = message.metadata.message_type
            if drawing.get(kind, True):
                return self._first(message, model, read, work, drawing)
            self._begin(own, model, read(message), work)
        self._more = True
        for peer in peers:
            other = peer.metadata.message_id
            if other in self._jobs:
                continue
            if len(self._jobs) >= 2 * self._workers:
                break
            try:
                self._begin(other, model, read(peer), work)
            except TimeoutError:
                raise  # the time of the message whose turn it is
            except Exception as error:
                self._jobs[other] = _Job()
                self._jobs[other].future.set_exception(error)
        else:
            self._more = False
        return self._take(own)

    def give_up(self) -> None:
        """Stop with clients that the server has not waited for."""
        for job in self._jobs.values():
            job.given_up.set()
        self._jobs.clear()

    def _first(
        self, message: Message, model: nn.Module, read: Read, work: Work, drawing: dict[str, bool]
    ) -> Result:
        """A client by itself: the first, to see whether the model draws, and all of a model that does."""
        kind = message.metadata.message_type
        batches = read(message)
        if kind not in drawing:
            before = torch.get_rng_state()
            self._begin(message.metadata.message_id, model, batches, work)
            result = self._take(message.metadata.message_id)
            if torch.equal(before, torch.get_rng_state()):
                if result[1]:
                    drawing[kind] = False
                return result
            drawing[kind] = True
            batches = read(message)  # seeds the generator again
        return work(model, batches)

    def _take(self, message_id: str) -> Result:
        job = self._jobs.pop(message_id)
        try:
            return job.future.result()
        finally:
            job.given_up.set()  # if its time is up

    def _begin(
        self, message_id: str, model: nn.Module, batches: Iterable[Batch], work: Work
    ) -> None:
        job = self._jobs[message_id] = _Job(length_hint(batches))
        copies = self._copies.setdefault(model, [])

        def run() -> Result:
            own = copies.pop() if copies else copy.deepcopy(model)
            try:
                return work(own, job.watched(batches))
            finally:
                copies.append(own)

        self._waiting.append((job, run))
        self._pool.submit(self._next)

    def _next(self) -> None:
        """Work on a client that waits: the first; when no more come the longest, so that threads end together."""
        with self._choosing:
            lengths = [job.batches for job, _ in self._waiting]
            job, run = self._waiting.pop(0 if self._more else lengths.index(max(lengths)))
        try:
            job.future.set_result(run())
        except BaseException as error:
            job.future.set_exception(error)
