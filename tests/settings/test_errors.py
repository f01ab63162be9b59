"""What messages are made of."""

import pytest

from settings.errors import counted


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 batches"), (1, "1 batch"), (2, "2 batches"), (1000, "1,000 batches")],
)
def test_one_thing_and_several(number: int, said: str) -> None:
    assert counted(number, "batch", "batches") == said
    assert counted(number, "node") == said.replace("batches", "nodes").replace("batch", "node")
