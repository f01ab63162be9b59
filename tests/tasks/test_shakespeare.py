"""The text task: the tutorial's windows and padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from settings.errors import InputError
from tasks.catalogue import load_task
from tasks.shakespeare import shakespeare
from tasks.stream import Batch, Prepared, Stream
from tasks.text import encode
from weights.keras import load_model

PARITY = Path(__file__).parents[1] / "data/parity"


def prepared(snippets: list[bytes], **options: Any) -> Prepared:
    task = shakespeare(**options)
    return task.prepare({"snippets": np.array(snippets, dtype=object)})


def batches(snippets: list[bytes], batch_size: int = 8, **options: Any) -> list[Batch]:
    stream = Stream(batch_size, drop_remainder=shakespeare(**options).drop_remainder)
    return list(stream.batches(prepared(snippets, **options), np.random.default_rng(0)))


def test_first_batch_is_the_tutorials(tff_data: Path) -> None:
    task = load_task("shakespeare")
    examples = task.population(str(tff_data / "shakespeare_train.h5"), "train").examples(
        "ALL_S_WELL_THAT_ENDS_WELL_CELIA"
    )
    stream = Stream(task.batch_size, drop_remainder=task.drop_remainder)
    first = next(stream.batches(task.prepare(examples), np.random.default_rng(0)))
    recorded = np.load(PARITY / "text_first_batch.npz")
    np.testing.assert_array_equal(first.inputs, recorded["x"])
    np.testing.assert_array_equal(first.targets, recorded["y"])
    assert first.mask is None


def test_windows_run_over_snippets_without_overlap() -> None:
    text = b"abcdefghijk"
    windows = prepared([text[:4], text[4:5], text[5:]], sequence_length=4)
    ids = encode(text)
    assert windows.inputs.tolist() == [ids[0:4].tolist(), ids[5:9].tolist()]
    assert windows.targets.tolist() == [ids[1:5].tolist(), ids[6:10].tolist()]
    assert windows.mask is None


def test_without_padding_short_text_is_dropped() -> None:
    assert len(prepared([b"abcd"], sequence_length=4)) == 0
    assert len(prepared([], sequence_length=4)) == 0
    assert batches([b"x" * 5 * 7], sequence_length=4) == []
    assert len(batches([b"x" * 5 * 8], sequence_length=4)) == 1


@pytest.mark.parametrize(
    ("length", "counted"),
    [
        (0, []),
        (1, []),
        (2, [1]),
        (4, [3]),
        (5, [4]),
        (6, [4]),  # one character more predicts nothing
        (7, [4, 1]),
        (12, [4, 4, 1]),
    ],
)
def test_padding_keeps_the_rest(length: int, counted: list[int]) -> None:
    windows = prepared([b"abcdefghijklmn"[:length]], sequence_length=4, pad=True)
    assert windows.mask is not None
    assert windows.mask.sum(dim=1).tolist() == counted
    ids = encode(b"abcdefghijklmn"[:length])
    for row, count in enumerate(counted):
        start = row * 5
        assert (
            windows.inputs[row, :count].tolist() == ids[start:][: len(ids[start:])][:count].tolist()
        )
        assert windows.targets[row, :count].tolist() == ids[start + 1 :][:count].tolist()


def test_padding_makes_whole_batches_of_what_counts() -> None:
    made = batches([b"abcdefg" * 3], batch_size=3, sequence_length=4, pad=True)
    assert [batch.inputs.shape for batch in made] == [(3, 4), (3, 4)]
    # 21 characters: four whole windows; the last character alone predicts nothing.
    assert [batch.num_examples for batch in made] == [3, 1]
    assert sum(batch.num_targets for batch in made) == 16


def test_padding_changes_neither_loss_nor_accuracy() -> None:
    """A masked batch of 8 scores as the unpadded text alone."""
    model = load_model(PARITY / "gru64_reset_after_true_init.h5").eval()
    task = shakespeare(sequence_length=20, pad=True)
    text = b"To be, or not to be: that is"
    (padded,) = batches([text], sequence_length=20, pad=True)
    from tasks.evaluation import evaluate

    sums = evaluate(task, model, [padded])
    whole = Batch(*(torch.from_numpy(encode(part))[None] for part in (text[:20], text[1:21])))
    rest = Batch(*(torch.from_numpy(encode(part))[None] for part in (text[21:27], text[22:28])))
    apart = [evaluate(task, model, [batch]) for batch in (whole, rest)]
    assert sums["loss"][0] == pytest.approx(sum(part["loss"][0] for part in apart), rel=1e-5)
    assert sums["accuracy"] == [sum(part["accuracy"][0] for part in apart), 26.0]
    assert sums["num_examples"] == [2.0]


def test_options() -> None:
    task = load_task("shakespeare:sequence_length=10,pad=true,pretrained=false")
    assert not task.drop_remainder
    assert task.checkpoint is None
    assert shakespeare().drop_remainder
    assert shakespeare().checkpoint is not None
    with pytest.raises(InputError, match="sequence_length must be at least 1"):
        load_task("shakespeare:sequence_length=0")
    with pytest.raises(InputError, match="unknown option of task shakespeare 'length'"):
        load_task("shakespeare:length=3")
