"""The text tutorial's task: next-character prediction on one speaking character's lines per client."""

import math
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from settings.errors import InputError
from tasks.data import Examples, Population, Split
from tasks.metrics import ACCURACY, classification_loss
from tasks.stream import Prepared
from tasks.task import Task
from weights.keras import build_model, load_model
from weights.recurrent import reset_states

VOCABULARY = (
    "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
)
"""The tutorial's 86 symbols; a symbol's id is its place here."""


def _embedded(name: str) -> Path:
    """A data file of the package `weights`, wherever on the path an installation has it.

    Flower's bundle is first on the path when it runs the app, and holds text files only.
    """
    own = Path(str(files("weights") / name))
    found = (place / "weights" / name for place in map(Path, sys.path))
    return own if own.is_file() else next(filter(Path.is_file, found), own)


DICKENS = _embedded("dickens_rnn.batch8.kerasmodel")
"""The embedded default checkpoint: a character GRU pre-trained on Dickens."""

# Under this, logits that differ by as little as float32 can tell are as good as infinitely far apart.
_COLDEST = 1e-6

PROMPT = "What of TensorFlow Federated, you ask? "
_IDS = np.zeros(256, dtype=np.int64)
_IDS[np.frombuffer(VOCABULARY.encode(), dtype=np.uint8)] = np.arange(len(VOCABULARY))


def shakespeare(sequence_length: int = 100, pad: bool = False, pretrained: bool = True) -> Task:
    """Windows of `sequence_length` + 1 characters, batches of 8, both without remainder as in TFF.

    Args:
        sequence_length: Characters that the model reads in one example.
        pad: Keep the last, short window: pad it, and mask the padding out of loss and metrics, so
            that clients with little text keep their data.
        pretrained: Start from the embedded Dickens checkpoint; false: from its architecture, afresh.
    """
    if sequence_length < 1:
        raise InputError("shakespeare:sequence_length must be at least 1")

    def prepare(examples: Examples) -> Prepared:
        ids = encode(b"".join(examples["snippets"]))
        return _windows(ids, sequence_length + 1, pad)

    def model() -> nn.Module:
        return build_model(load_model(DICKENS).config, logits=True)

    return Task(
        name="shakespeare",
        model=model,
        prepare=prepare,
        loss=classification_loss,
        checkpoint=DICKENS if pretrained else None,
        metrics={"accuracy": ACCURACY},
        sample=_open_sample,
        sample_is="38 plays",
        published="shakespeare",
        batch_size=8,
        shuffle_buffer=10_000,
        drop_remainder=not pad,
        client_optimizer="sgd:lr=0.5",
        probe={"snippets": np.array([b"\r" * (sequence_length + 1)] * 8, dtype=object)},
        write_sample=lambda model, seed: generate(model, PROMPT, length=200, seed=seed),
    )


def encode(text: bytes) -> npt.NDArray[np.int64]:
    """Ids of bytes; what is not in the vocabulary becomes 0, as in the tutorial's lookup table."""
    return _IDS[np.frombuffer(text, dtype=np.uint8)]


def _windows(ids: npt.NDArray[np.int64], width: int, pad: bool) -> Prepared:
    """Cut ids into windows; inputs are all but a window's last id, targets all but its first."""
    whole, rest = divmod(len(ids), width)
    count = whole + (1 if pad and rest > 1 else 0)
    padded = np.zeros(count * width, dtype=np.int64)
    kept = min(len(ids), len(padded))
    padded[:kept] = ids[:kept]
    windows = torch.from_numpy(padded.reshape(count, width))
    counted = None
    if pad:
        counted = (torch.arange(count * width) < kept).reshape(count, width)[:, 1:]
    return Prepared(windows[:, :-1], windows[:, 1:], counted)


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
        raise InputError(f"the temperature must be 0 or more, but is {temperature}")
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


def _open_sample(split: Split) -> Population:
    from tasks.plays import open_plays

    return open_plays(split)
