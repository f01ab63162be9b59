"""Against the real Keras 3 on its torch backend: every layer and option, in and out."""

import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tasks.shakespeare import DICKENS
from weights.keras import KerasModel, build_model, load_model, load_weights, save_model

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", "/nonexistent")
keras = pytest.importorskip("keras")
layers = keras.layers

IMAGE, SEQUENCE, ROW = (9, 8, 4), (6, 3), (5,)
ACTIVATIONS = [
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish",
    "hard_silu", "hard_swish", "tanh", "sigmoid", "log_sigmoid", "hard_sigmoid", "softmax",
    "log_softmax", "softplus", "softsign", "exponential",
]  # fmt: skip


def conv(**options: Any) -> list[Any]:
    return [layers.Conv2D(6, **{"kernel_size": 3, **options})]


CASES: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    **{
        f"conv {padding} {strides} {kernel}": (
            IMAGE,
            conv(kernel_size=kernel, strides=strides, padding=padding),
        )
        for padding in ("valid", "same")
        for strides, kernel in ((1, 3), (2, 3), ((2, 3), (4, 3)), (3, 2), (1, 4))
    },
    "conv dilated": (IMAGE, conv(dilation_rate=2, padding="same", activation="elu")),
    "conv dilated valid": (IMAGE, conv(dilation_rate=(2, 1))),
    "conv groups": (IMAGE, conv(groups=2, use_bias=False)),
    "conv one channel": ((7, 7, 1), [*conv(padding="same"), *conv(strides=2)]),
    **{
        f"max pooling {padding} {strides} {pool}": (
            IMAGE,
            [layers.MaxPooling2D(pool, strides, padding=padding)],
        )
        for padding in ("valid", "same")
        for strides, pool in ((None, 2), (2, 3), ((1, 2), (3, 2)), (3, 4))
    },
    "average pooling": (IMAGE, [layers.AveragePooling2D((3, 2))]),
    # Keras's torch backend pads asymmetric cases by repetition, TensorFlow as we do: see avg.h5.
    "average pooling same": (IMAGE, [layers.AveragePooling2D(3, 1, padding="same")]),
    "global average": (IMAGE, [layers.GlobalAveragePooling2D()]),
    "global average keepdims": (IMAGE, [layers.GlobalAveragePooling2D(keepdims=True)]),
    **{
        f"gru {reset_after} {activation}": (
            SEQUENCE,
            [
                layers.GRU(
                    4,
                    reset_after=reset_after,
                    recurrent_activation=activation,
                    return_sequences=True,
                )
            ],
        )
        for reset_after in (True, False)
        for activation in ("sigmoid", "hard_sigmoid")
    },
    "gru last": (SEQUENCE, [layers.GRU(4), layers.Dense(3)]),
    "gru no bias": (SEQUENCE, [layers.GRU(4, use_bias=False, activation="relu")]),
    "gru backwards": (SEQUENCE, [layers.GRU(4, go_backwards=True, return_sequences=True)]),
    "lstm": (SEQUENCE, [layers.LSTM(4, return_sequences=True), layers.LSTM(3)]),
    "lstm options": (
        SEQUENCE,
        [layers.LSTM(4, use_bias=False, recurrent_activation="hard_sigmoid", go_backwards=True)],
    ),
    **{f"dense {name}": (ROW, [layers.Dense(7, activation=name)]) for name in ACTIVATIONS},
    "dense no bias, rank 3": (SEQUENCE, [layers.Dense(2, use_bias=False)]),
    "activation": (ROW, [layers.Activation("hard_sigmoid"), layers.Softmax()]),
    "relu": (ROW, [layers.ReLU(), layers.Dropout(0.5)]),
    "relu options": (ROW, [layers.ReLU(max_value=1.0, negative_slope=0.3, threshold=0.2)]),
    "flatten": (IMAGE, [*conv(), layers.Flatten(), layers.Dense(3)]),
    "reshape": (IMAGE, [layers.Reshape((-1, 6)), layers.LSTM(2)]),
    "reshape exact": (IMAGE, [layers.Reshape((4, 8, 9)), *conv()]),
    "batch norm image": (IMAGE, [layers.BatchNormalization(momentum=0.8, epsilon=0.01)]),
    "batch norm row": (ROW, [layers.BatchNormalization()]),
    "batch norm bare": (ROW, [layers.BatchNormalization(center=False, scale=False)]),
    "layer norm": (IMAGE, [layers.LayerNormalization()]),
    "layer norm bare": (ROW, [layers.LayerNormalization(center=False, epsilon=0.1)]),
}


def randomised(*stack: Any, shape: tuple[int, ...], batch: int | None = None) -> Any:
    """A Keras model with every array drawn anew: biases too, so that none can get lost."""
    model = keras.Sequential([keras.Input(shape, batch_size=batch), *stack])
    random = np.random.default_rng(0)
    drawn = [random.normal(0, 0.4, array.shape) for array in model.get_weights()]
    positive = ["variance" in weight.path for weight in model.weights]
    model.set_weights([abs(a) + 0.5 if p else a for a, p in zip(drawn, positive, strict=True)])
    return model


def written(model: Any, folder: Path, suffix: str) -> Path:
    path = folder / f"model{suffix}"
    (model.save_weights if "weights" in suffix else model.save)(path)
    return path


def ours(model: KerasModel, x: npt.NDArray[Any], training: bool = False) -> npt.NDArray[Any]:
    model.train(training)
    with torch.no_grad():
        result: npt.NDArray[Any] = model(torch.from_numpy(x)).numpy()
    return result


def theirs(model: Any, x: npt.NDArray[Any], training: bool = False) -> npt.NDArray[Any]:
    with torch.no_grad():
        result: npt.NDArray[Any] = keras.ops.convert_to_numpy(model(x, training=training))
    return result


def close(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> None:
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_every_layer_in_every_file(case: str, tmp_path: Path) -> None:
    shape, stack = CASES[case]
    # Layers remember their first model's shapes, so that each test has its own.
    model = randomised(*(type(at).from_config(at.get_config()) for at in stack), shape=shape)
    x = np.random.default_rng(1).normal(0, 1.5, (3, *shape)).astype(np.float32)
    expected = theirs(model, x)
    for suffix in (".h5", ".keras"):
        loaded = load_model(written(model, tmp_path, suffix))
        close(ours(loaded, x), expected)
    rebuilt = build_model(loaded.config)
    load_weights(rebuilt, written(model, tmp_path, ".weights.h5"))
    close(ours(rebuilt, x), expected)
    from_json = build_model(model.to_json())
    assert from_json.state_dict().keys() == loaded.state_dict().keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5"])
def test_keras_opens_what_we_save(suffix: str, tmp_path: Path) -> None:
    model = randomised(
        layers.Embedding(11, 4),
        layers.GRU(5, return_sequences=True, name="first"),
        layers.GRU(3, return_sequences=True, reset_after=False),
        layers.LSTM(6),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.5),
        layers.Dense(4),
        layers.Dense(3, activation="softmax"),
        shape=(7,),
    )
    template, target = written(model, tmp_path, suffix), tmp_path / f"saved{suffix}"
    config = load_model(written(model, tmp_path, ".keras"), logits=True).config
    trained = build_model(config)
    with torch.no_grad():
        trained.get_buffer("norm.running_var").fill_(0.7)
        trained.get_parameter("first.bias_hh").normal_()
    save_model(trained, template, target)
    if "weights" in suffix:
        model.load_weights(target)
    else:
        model = keras.models.load_model(target)
    x = np.random.default_rng(1).integers(0, 11, (4, 7))
    logits = ours(trained, x)
    close(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), theirs(model, x))


@pytest.mark.filterwarnings("ignore")
def test_batch_normalization_in_training(tmp_path: Path) -> None:
    for shape in (IMAGE, ROW):
        model = randomised(layers.BatchNormalization(momentum=0.9), shape=shape)
        loaded = load_model(written(model, tmp_path, ".keras"))
        x = np.random.default_rng(1).normal(1, 2, (4, *shape)).astype(np.float32)
        close(ours(loaded, x, training=True), theirs(model, x, training=True))
        close(ours(loaded, x), theirs(model, x))


@pytest.mark.filterwarnings("ignore")
def test_stateful_layers_carry_on(tmp_path: Path) -> None:
    model = randomised(
        layers.GRU(4, stateful=True, return_sequences=True),
        layers.LSTM(3, stateful=True),
        shape=SEQUENCE,
        batch=2,
    )
    loaded = load_model(written(model, tmp_path, ".keras"))
    for x in np.random.default_rng(1).normal(0, 1, (3, 2, *SEQUENCE)).astype(np.float32):
        close(ours(loaded, x), theirs(model, x))


@pytest.mark.filterwarnings("ignore")
def test_functional_chain_with_optimizer(tmp_path: Path) -> None:
    """Trained, so that the file holds an optimizer; it stays as it is, bit by bit."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, name="first")(inputs)
    x = layers.Dense(2)(layers.Flatten()(layers.ReLU()(x)))
    model = keras.Model(inputs, x)
    model.compile("adam", "mse")
    data = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype(np.float32)
    model.fit(data, np.ones((4, 2)), verbose=0)
    for suffix in (".h5", ".keras", ".weights.h5"):
        path = written(model, tmp_path, suffix)
        if "weights" not in suffix:
            loaded = load_model(path)
        close(ours(loaded, data), theirs(model, data))
        save_model(loaded, path, tmp_path / f"again{suffix}")
    before, after = tmp_path / "model.weights.h5", tmp_path / "again.weights.h5"
    assert before.read_bytes() == after.read_bytes()
    with h5py.File(before) as file:
        assert "optimizer" in file


@pytest.mark.filterwarnings("ignore")
def test_a_branch_is_an_error(tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    hidden = layers.Dense(4, name="hidden")(inputs)
    merged = layers.Add()([hidden, layers.Dense(4, name="side")(hidden)])
    for suffix in (".h5", ".keras"):
        path = written(keras.Model(inputs, merged), tmp_path, suffix)
        with pytest.raises(ValueError, match=r"layer 'add.*' has 2 inputs"):
            load_model(path)


@pytest.mark.filterwarnings("ignore")
def test_layers_built_in_keras_take_weights_from_a_keras_2_file(tmp_path: Path) -> None:
    """Keras 3 refuses Keras 2's GRU as it stands (an option `time_major`): ours and the original alike."""
    template, tuned = DICKENS, tmp_path / "tuned.h5"
    trained = load_model(template)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    save_model(trained, template, tuned)
    again = load_model(tuned)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in trained.state_dict().items())
    with pytest.raises(ValueError, match="time_major"):
        keras.models.load_model(shutil.copy(template, tmp_path / "original.h5"))
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(8, None)),
            layers.Embedding(86, 256),
            layers.GRU(1024, return_sequences=True, stateful=True, reset_after=False),
            layers.Dense(86),
        ]
    )
    model.load_weights(tuned)
    x = np.random.default_rng(1).integers(0, 86, (8, 10))
    close(ours(trained, x), theirs(model, x))
