"""The text tutorial's task: next-character prediction on one speaking character's lines per client."""

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from settings.errors import InputError
from tasks.data import Examples
from tasks.metrics import ACCURACY, classification_loss
from tasks.plays import open_plays
from tasks.stream import Batch, Prepared
from tasks.task import Task
from tasks.text import PROMPT, VOCABULARY, encode, generate
from weights.keras import build_model, load_model


def _embedded(name: str) -> Path:
    """A data file of the package `weights`, wherever on the path an installation has it.

    Flower's bundle is first on the path when it runs the app, and holds text files only.
    """
    own = Path(str(files("weights") / name))
    found = (place / "weights" / name for place in map(Path, sys.path))
    return own if own.is_file() else next(filter(Path.is_file, found), own)


DICKENS = _embedded("dickens_rnn.batch8.kerasmodel")
"""The embedded default checkpoint: a character GRU pre-trained on Dickens."""


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

    # A few characters tell a misfit as well as a window of any length.
    highest = torch.full((8, 4), len(VOCABULARY) - 1)
    return Task(
        name="shakespeare",
        model=model,
        prepare=prepare,
        loss=classification_loss,
        checkpoint=DICKENS if pretrained else None,
        metrics={"accuracy": ACCURACY},
        sample=open_plays,
        sample_is="38 plays",
        published="shakespeare",
        batch_size=8,
        shuffle_buffer=10_000,
        drop_remainder=not pad,
        client_optimizer="sgd:lr=0.5",
        probe=Batch(highest, highest),
        write_sample=lambda model, seed: generate(model, PROMPT, length=200, seed=seed),
    )


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
