"""Text for a character model: the tutorial's symbols, and what a model writes with them."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from settings.errors import InputError
from weights.recurrent import reset_states

VOCABULARY = (
    "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
)
"""The tutorial's 86 symbols; a symbol's id is its place here."""

PROMPT = "What of TensorFlow Federated, you ask? "

# Under this, logits that differ by as little as float32 can tell are as good as infinitely far apart.
_COLDEST = 1e-6
_IDS = np.zeros(256, dtype=np.int64)
_IDS[np.frombuffer(VOCABULARY.encode(), dtype=np.uint8)] = np.arange(len(VOCABULARY))


def encode(text: bytes) -> npt.NDArray[np.int64]:
    """Ids of bytes; what is not in the vocabulary becomes 0, as in the tutorial's lookup table."""
    return _IDS[np.frombuffer(text, dtype=np.uint8)]


def generate(
    model: nn.Module,
    prompt: str,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
    top_k: int = 0,
) -> str:
    """Continue a prompt: what `stream` yields, in one piece."""
    return "".join(stream(model, prompt, length, temperature, seed, top_k))


def stream(
    model: nn.Module,
    prompt: str,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
    top_k: int = 0,
) -> Iterator[str]:
    """Continue a prompt by sampling one character after the other, as the tutorial does.

    Args:
        model: Maps ids (1, time) to logits (1, time, 86). A stateful GRU carries its state along;
            to another model the whole text is given again.
        prompt: Text of vocabulary characters.
        length: Characters to add.
        temperature: Divides the logits: low is predictable, high is surprising, 0 takes the likeliest.
        seed: Of the sampling.
        top_k: Sample among so many likeliest characters; 0: among all.

    Returns:
        The continuation without the prompt, character by character.

    Raises:
        InputError: An empty prompt, a prompt character outside the vocabulary, a temperature or a number
            that is negative, or a model that does not give 86 logits.
    """
    if not prompt:
        raise InputError("the prompt is empty: there is nothing to continue")
    for position, character in enumerate(prompt, start=1):
        if character not in VOCABULARY:
            raise InputError(
                f"the prompt has {character!r} at position {position}, which is not among the "
                f"{len(VOCABULARY)} symbols that the model knows: {VOCABULARY!r}"
            )
    if not 0 <= temperature < math.inf:
        raise InputError(f"the temperature must be 0 or more and finite, not {temperature}")
    if min(length, top_k) < 0:
        raise InputError(f"length and top-k must be 0 or more, but are {length} and {top_k}")
    return _written(model, prompt, length, temperature, seed, top_k)


@torch.no_grad()
def _written(
    model: nn.Module, prompt: str, length: int, temperature: float, seed: int, top_k: int
) -> Iterator[str]:
    rng = torch.Generator().manual_seed(seed)
    training = model.training
    carries_state = any(getattr(layer, "stateful", False) for layer in model.modules())
    ids = torch.from_numpy(encode(prompt.encode()))[None]
    model.eval()
    reset_states(model)
    try:
        for _ in range(length):
            chosen = _draw(model(ids)[0, -1], temperature, top_k, rng)
            yield VOCABULARY[int(chosen)]
            ids = chosen[None] if carries_state else torch.cat([ids, chosen[None]], dim=1)
    finally:
        reset_states(model)
        model.train(training)


def _draw(logits: Tensor, temperature: float, top_k: int, rng: torch.Generator) -> Tensor:
    """(1,) the next id."""
    if logits.shape != (len(VOCABULARY),):
        raise InputError(f"the model gives {tuple(logits.shape)} logits, text needs (86,)")
    if top_k:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -math.inf)
    if temperature < _COLDEST:
        return logits.argmax(dim=-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=rng)
