"""What several of these tests begin with."""

from collections.abc import Iterator

import pytest

from weights.threads import one_thread


@pytest.fixture
def on_one_thread() -> Iterator[None]:
    """Have torch work on one thread, as our kernels do; a test may set another number."""
    with one_thread():
        yield
