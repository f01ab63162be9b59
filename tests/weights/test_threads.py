"""How many threads torch works on, in several threads of Python."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from weights.threads import one_thread, work_on


def test_a_threads_number_is_not_that_of_another() -> None:
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=work_on, initargs=(before + 2,)) as pool:
        pool.submit(int).result()
        with one_thread():
            assert torch.get_num_threads() == 1
            assert pool.submit(torch.get_num_threads).result() == before + 2
        assert pool.submit(torch.get_num_threads).result() == before + 2
    assert torch.get_num_threads() == before


def test_the_number_comes_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == before
