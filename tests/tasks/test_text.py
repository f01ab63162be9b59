"""Symbols, and writing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from settings.errors import InputError
from tasks.text import PROMPT, VOCABULARY, encode, generate, stream
from weights.keras import load_model
from weights.recurrent import GRU

PARITY = Path(__file__).parents[1] / "data/parity"


def test_vocabulary() -> None:
    assert len(set(VOCABULARY)) == 86
    assert encode(VOCABULARY.encode()).tolist() == list(range(86))
    # Like the tutorial's lookup table: what is unknown becomes 0, the id of `d`.
    assert encode("d~é|".encode()).tolist() == [0] * 5


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
        ({"temperature": -0.1}, "temperature must be 0 or more and finite, not -0.1"),
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
