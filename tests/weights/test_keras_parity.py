"""What Keras 2.14 itself computed, see tests/data/parity and tests/data/keras2."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import weights
from weights.keras import KerasModel, load_model

DATA = Path(__file__).parents[1] / "data"
DICKENS = Path(weights.__path__[0]) / "dickens_rnn.batch8.kerasmodel"


def outputs(model: KerasModel, x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    model.eval()
    with torch.no_grad():
        result: npt.NDArray[np.float32] = model(torch.from_numpy(x)).numpy()
    return result


def test_dickens_gives_keras_logits() -> None:
    saved = np.load(DATA / "parity/dickens_rnn_forward.npz")
    model = load_model(DICKENS)
    logits = outputs(model, saved["x"])[:, ::20]
    np.testing.assert_allclose(logits, saved["logits"], atol=1e-4, rtol=1e-4)
    shapes = {name: tuple(array.shape) for name, array in model.state_dict().items()}
    assert shapes == {
        "embedding_1.weight": (86, 256),
        "gru_1.weight_ih": (3072, 256),
        "gru_1.weight_hh": (3072, 1024),
        "gru_1.bias_ih": (3072,),
        "dense_1.weight": (86, 1024),
        "dense_1.bias": (86,),
    }


@pytest.mark.parametrize("reset_after", ["true", "false"])
def test_gru64_gives_keras_logits(reset_after: str) -> None:
    saved = np.load(DATA / f"parity/gru64_reset_after_{reset_after}_forward.npz")
    model = load_model(DATA / f"parity/gru64_reset_after_{reset_after}_init.h5")
    logits = outputs(model, saved["x"])[:, ::10]
    np.testing.assert_allclose(logits, saved["logits"], atol=1e-4, rtol=1e-4)


def test_emnist_cnn_gives_keras_probabilities() -> None:
    if "FEDFERRY_DATA" not in os.environ:
        pytest.skip("FEDFERRY_DATA is not set, so there is no emnist_cnn_init.h5")
    path = Path(os.environ["FEDFERRY_DATA"]).parent / "parity/emnist_cnn_init.h5"
    saved = np.load(DATA / "parity/emnist_cnn_init_forward.npz")
    np.testing.assert_allclose(
        outputs(load_model(path), saved["x"]), saved["probs"], atol=1e-4, rtol=1e-4
    )
    logits = outputs(load_model(path, logits=True), saved["x"])
    np.testing.assert_allclose(
        torch.softmax(torch.from_numpy(logits), -1), saved["probs"], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    "name",
    [
        "rnn.h5",
        "rnn.keras",
        "conv.h5",
        "conv.keras",
        "func.h5",
        "func.keras",
        "avg.h5",
        "cudnn.h5",
    ],
)
def test_files_of_keras_2(name: str) -> None:
    saved = np.load(DATA / "keras2" / f"{name.partition('.')[0]}.npz")
    y = outputs(load_model(DATA / "keras2" / name), saved["x"])
    assert y.shape == saved["y"].shape
    np.testing.assert_allclose(y, saved["y"], atol=1e-5, rtol=1e-5)


def test_training_mode_of_keras_2() -> None:
    """The running variance of images is the unbiased one, that of rows the biased one."""
    saved = np.load(DATA / "keras2/conv.npz")
    model = load_model(DATA / "keras2/conv.h5").train()
    with torch.no_grad():
        y = model(torch.from_numpy(saved["x"]))
    np.testing.assert_allclose(y, saved["ytrain"], atol=1e-5, rtol=1e-4)
    state = model.state_dict()
    for layer in ("batch_normalization", "batch_normalization_1"):
        for ours, theirs in (("mean", "mean"), ("var", "variance")):
            np.testing.assert_allclose(
                state[f"{layer}.running_{ours}"],
                saved[f"after_{layer}__moving_{theirs}:0"],
                atol=1e-6,
                rtol=1e-5,
            )
