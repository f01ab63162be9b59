"""The text task: the tutorial's windows, padding, and writing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from settings.errors import InputError
from tasks.catalogue import load_task
from tasks.shakespeare import PROMPT, VOCABULARY, encode, generate, shakespeare, stream
from tasks.stream import Batch, Prepared, Stream
from weights.keras import load_model
from weights.recurrent import GRU

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


def test_vocabulary() -> None:
    assert len(set(VOCABULARY)) == 86
    assert encode(VOCABULARY.encode()).tolist() == list(range(86))
    # Like the tutorial's lookup table: what is unknown becomes 0, the id of `d`.
    assert encode("d~é|".encode()).tolist() == [0] * 5


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


class Alphabet(nn.Module):
    """Not recurrent: the symbol after the last, and it counts how much it is given."""

    def __init__(self, width: int = 86) -> None:
        super().__init__()
        self.width = width
        self.given: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.given.append(ids.shape[1])
        return nn.functional.one_hot((ids + 1) % self.width, self.width).float() * 100


def test_writing_without_states_gives_the_whole_text_again() -> None:
    model = Alphabet()
    assert generate(model, VOCABULARY[:3], length=5) == VOCABULARY[3:8]
    assert model.given == [3, 4, 5, 6, 7]


def test_writing_depends_on_the_seed_alone() -> None:
    model = load_model(PARITY / "gru64_reset_after_false_init.h5")
    first = generate(model, PROMPT, 60, seed=1)
    assert len(first) == 60
    assert set(first) <= set(VOCABULARY)
    torch.rand(1)
    assert generate(model, PROMPT, 60, seed=1) == first
    assert generate(model, PROMPT, 60, seed=2) != first


def test_cold_or_with_one_choice_it_takes_the_likeliest() -> None:
    model = load_model(PARITY / "gru64_reset_after_false_init.h5")
    likeliest = generate(model, PROMPT, 30, temperature=0)
    for temperature in (1e-300, 1e-7, 2e-6):
        for seed in (1, 2):
            assert generate(model, PROMPT, 30, temperature, seed) == likeliest
    assert generate(model, PROMPT, 30, temperature=5.0, top_k=1) == likeliest
    assert generate(model, PROMPT, 30, temperature=5.0) != likeliest


class Shares(nn.Module):
    """Gives the same four symbols the probabilities 0.4, 0.3, 0.2, 0.1, whatever it reads."""

    def forward(self, ids: Tensor) -> Tensor:
        logits = torch.full((*ids.shape, 86), -100.0)
        logits[..., :4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
        return logits


def test_top_k_leaves_the_proportions_of_the_likeliest() -> None:
    text = generate(Shares(), "a", 3000, top_k=2)
    assert set(text) == set(VOCABULARY[:2])
    assert text.count(VOCABULARY[0]) / 3000 == pytest.approx(4 / 7, abs=0.04)
    assert set(generate(Shares(), "a", 300, top_k=1000)) == set(VOCABULARY[:4])


def test_it_writes_as_it_goes_and_can_be_stopped() -> None:
    model = load_model(PARITY / "gru64_reset_after_false_init.h5").train()
    whole = generate(model, PROMPT, 10, seed=3)
    characters = stream(model, PROMPT, 10_000_000, seed=3)
    assert "".join(next(characters) for _ in range(10)) == whole
    characters.close()  # type: ignore[attr-defined]
    assert model.training
    assert model(torch.zeros(8, 3, dtype=torch.long)).shape == (8, 3, 86)


def test_carried_states_do_what_the_whole_text_does() -> None:
    model = load_model(PARITY / "gru64_reset_after_false_init.h5")
    carried = generate(model, PROMPT, 30, temperature=0.7, seed=4)
    for layer in model.modules():
        if isinstance(layer, GRU):
            layer.stateful = False
    assert generate(model, PROMPT, 30, temperature=0.7, seed=4) == carried


def test_writing_leaves_the_model_as_it_was() -> None:
    model = load_model(PARITY / "gru64_reset_after_false_init.h5").train()
    before = torch.rand(1, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    generate(model, PROMPT, 5)
    assert torch.rand(1).equal(before)
    assert model.training
    # The state it wrote with is of one sequence: a batch of 8 would be refused if it stayed.
    assert model(torch.zeros(8, 3, dtype=torch.long)).shape == (8, 3, 86)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"prompt": "naïve ~"}, r"'ï' at position 3, which is not among the 86 symbols"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"temperature": -0.1}, "temperature must be 0 or more, but is -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"temperature": float("inf")}, "temperature must be 0 or more"),
        ({"length": -1}, "length and top-k must be 0 or more, but are -1 and 0"),
        ({"top_k": -1}, "length and top-k must be 0 or more, but are 3 and -1"),
    ],
)
def test_mistakes_in_writing(words: dict[str, Any], said: str) -> None:
    # Said before anything is written, not with the first character.
    with pytest.raises(InputError, match=said):
        stream(Alphabet(), **dict[str, Any](prompt="a", length=3) | words)


def test_a_model_of_another_width_cannot_write() -> None:
    with pytest.raises(InputError, match=r"gives \(90,\) logits"):
        generate(Alphabet(90), "a", 3)
