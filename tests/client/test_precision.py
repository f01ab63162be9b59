"""Training in bfloat16: what is rounded, and what is not."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.precision import outputs_of
from client.update import local_update
from tasks.emnist import emnist_cnn
from tasks.metrics import classification_loss
from tasks.stream import Batch, Prepared
from tasks.task import Task
from weights.keras import KerasModel
from weights.layers import Dense, Embedding, linear
from weights.named import NamedArrays, arrays_of, fingerprint
from weights.recurrent import GRU, LSTM

SYMBOLS = 11


def text_model(recurrent: nn.Module) -> nn.Module:
    layers = {"a": Embedding(SYMBOLS, 6), "b": recurrent, "c": Dense(32, SYMBOLS, True, linear)}
    model = KerasModel(layers, "{}")
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


MODELS = {
    "gru": lambda: text_model(GRU(6, 32, stateful=True)),
    "gru-reset-after": lambda: text_model(GRU(6, 32, reset_after=True)),
    "gru-on-gru": lambda: text_model(nn.Sequential(GRU(6, 8), GRU(8, 32))),
    "lstm": lambda: text_model(LSTM(6, 32)),
    "cnn": lambda: emnist_cnn().model(),
}


def inputs_for(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if name == "cnn":
        images = torch.rand(5, 28, 28, 1, generator=generator)
        return images, torch.randint(10, (5,), generator=generator)
    text = torch.randint(SYMBOLS, (4, 8), generator=generator)
    return text[:, :-1], text[:, 1:]


def update_of(name: str, precision: str) -> NamedArrays:
    def prepare(examples: object) -> Prepared:
        raise NotImplementedError

    torch.manual_seed(0)
    model = MODELS[name]().eval()
    task = Task("toy", lambda: model, prepare, classification_loss)
    batch = Batch(*inputs_for(name))
    initial = {name: array.copy() for name, array in arrays_of(model).items()}
    torch.manual_seed(2)  # dropout
    return local_update(task, model, initial, [batch] * 3, "sgd:lr=0.1", precision)[0]


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_updates(name: str) -> None:
    exact, rounded = update_of(name, "float32"), update_of(name, "bf16")
    for key, array in rounded.items():
        assert array.dtype == np.float32
        error = np.linalg.norm(array - exact[key]) / np.linalg.norm(exact[key])
        # Rounding turns near ties in the CNN's pools, and each sends its gradient elsewhere.
        assert 1e-4 < error < (0.5 if name == "cnn" else 0.01), key
    assert fingerprint(rounded) == fingerprint(update_of(name, "bf16"))


def test_what_stays_float32() -> None:
    model = MODELS["gru"]()
    outputs = outputs_of(model, inputs_for("gru")[0], "bf16")
    assert outputs.dtype == torch.float32
    (layer,) = (module for module in model.modules() if isinstance(module, GRU))
    assert layer.states is not None
    (state,) = layer.states
    assert state.dtype == torch.float32
    assert not torch.equal(state, state.bfloat16().float())
    outputs.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
