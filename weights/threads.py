"""How many threads torch works on: each thread of Python has a number of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def work_on(threads: int) -> None:
    """Have torch work on so many threads from here on, in this thread of Python."""
    # A thread that asks for its number for the first time is given the one that was set last, anywhere: also if that
    # comes after its own.
    torch.get_num_threads()
    torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch work on one thread meanwhile.

    For one array after the other where memory takes the time: the other threads would have to be woken up for each,
    and where cores are shared with others, waiting for them takes longer than all the rest.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
