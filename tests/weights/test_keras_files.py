"""Old layouts of Keras files, what saving leaves behind, and weights of another model."""

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import weights
from settings.errors import InputError
from weights.keras import build_model, load_model, load_weights, save_model

DATA = Path(__file__).parents[1] / "data"
KERAS2 = DATA / "keras2"
DICKENS = Path(weights.__path__[0]) / "dickens_rnn.batch8.kerasmodel"
UNITS, INPUTS = 4, 3


def tensorflow_1(path: Path, class_name: str = "GRU", chunked: bool = False) -> dict[str, Any]:
    """A file as TensorFlow 1.x wrote it: bytes, no InputLayer, no `reset_after`. Gives its arrays."""
    random = np.random.default_rng(0)
    bias = 6 * UNITS if class_name == "CuDNNGRU" else 3 * UNITS
    shapes = {
        "kernel": (INPUTS, 3 * UNITS),
        "recurrent_kernel": (UNITS, 3 * UNITS),
        "bias": (bias,),
    }
    arrays = {
        f"gru/{name}:0": random.normal(size=shape).astype("f4") for name, shape in shapes.items()
    }
    options: dict[str, Any] = {"name": "gru", "trainable": True, "units": UNITS}
    options |= {"batch_input_shape": [8, None, INPUTS], "dtype": "float32"}
    options |= {"return_sequences": True, "stateful": True}
    if class_name == "GRU":
        options |= {"activation": "tanh", "recurrent_activation": "hard_sigmoid", "use_bias": True}
    config = {"class_name": "Sequential", "config": [{"class_name": class_name, "config": options}]}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.1.6-tf"
        file.attrs["model_config"] = json.dumps(config).encode()
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [b"gru"]
        group = root.create_group("gru")
        names = [name.encode() for name in arrays]
        if chunked:
            group.attrs["weight_names0"], group.attrs["weight_names1"] = names[:2], names[2:]
        else:
            group.attrs["weight_names"] = names
        for name, array in arrays.items():
            group[name] = array
    return {name[4:-2]: array for name, array in arrays.items()}


def keras_gru(
    x: np.ndarray[Any, Any], kernel: Any, recurrent: Any, bias: Any, cell: str
) -> np.ndarray[Any, Any]:
    """Keras's GRU, gate by gate from its documentation, in float64."""
    hard = cell == "GRU"

    def gate(a: Any) -> Any:
        return np.clip(0.2 * a + 0.5, 0, 1) if hard else 1 / (1 + np.exp(-a))

    def cut(array: Any) -> Any:
        return np.split(np.asarray(array, "f8"), 3, axis=-1)

    wz, wr, wh = cut(kernel)
    uz, ur, uh = cut(recurrent)
    b, c = (bias, np.zeros_like(bias)) if hard else bias.reshape(2, -1)
    (bz, br, bh), (cz, cr, ch) = cut(b), cut(c)
    h, steps = np.zeros((len(x), UNITS)), []
    for t in range(x.shape[1]):
        z = gate(x[:, t] @ wz + bz + h @ uz + cz)
        r = gate(x[:, t] @ wr + br + h @ ur + cr)
        inner = (r * h) @ uh if hard else r * (h @ uh + ch)
        h = z * h + (1 - z) * np.tanh(x[:, t] @ wh + bh + inner)
        steps.append(h)
    return np.stack(steps, 1)


@pytest.mark.parametrize("class_name", ["GRU", "CuDNNGRU"])
@pytest.mark.parametrize("chunked", [False, True])
def test_tensorflow_1_layout(class_name: str, chunked: bool, tmp_path: Path) -> None:
    path = tmp_path / "old.kerasmodel"
    arrays = tensorflow_1(path, class_name, chunked)
    kernel, recurrent = arrays["kernel"], arrays["recurrent_kernel"]
    if class_name == "CuDNNGRU":  # as `_convert_rnn_weights` of Keras 2 turns it into a GRU's
        gates = np.hsplit(kernel, 3)
        kernel = np.hstack([gate.T.reshape(gate.shape, order="F") for gate in gates])
        recurrent = np.hstack([gate.T for gate in np.hsplit(recurrent, 3)])
    x = np.random.default_rng(1).normal(size=(8, 5, INPUTS)).astype("f4")
    model = load_model(path)
    with torch.no_grad():
        y = model(torch.from_numpy(x)).numpy()
    expected = keras_gru(x, kernel, recurrent, arrays["bias"], class_name)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    save_model(model, path, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_long_lists_of_names_are_split(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    tensorflow_1(path)
    expected = load_model(path).state_dict()
    with h5py.File(path, "r+") as file:
        root = file["model_weights"]
        root.attrs["layer_names0"] = root.attrs.pop("layer_names")
    for name, array in load_model(path).state_dict().items():
        assert torch.equal(array, expected[name])


@pytest.mark.parametrize(
    "name", ["rnn.h5", "rnn.weights.h5", "rnn_weights_v2.h5", "conv.h5", "func.h5", "cudnn.h5"]
)
def test_saving_untrained_changes_no_bit(name: str, tmp_path: Path) -> None:
    stem = name.replace("_", ".").partition(".")[0]
    model = load_model(KERAS2 / f"{stem}.h5")
    save_model(model, KERAS2 / name, tmp_path / name)
    assert (tmp_path / name).read_bytes() == (KERAS2 / name).read_bytes()


@pytest.mark.parametrize("name", ["rnn.keras", "conv.keras", "func.keras"])
def test_saving_an_archive_untrained(name: str, tmp_path: Path) -> None:
    arrays = {key: a.numpy() for key, a in load_model(KERAS2 / name).state_dict().items()}
    save_model(arrays, KERAS2 / name, tmp_path / name)
    with zipfile.ZipFile(KERAS2 / name) as old, zipfile.ZipFile(tmp_path / name) as new:
        assert old.namelist() == new.namelist()
        assert all(old.read(member) == new.read(member) for member in old.namelist())


def test_saving_over_the_template(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes((KERAS2 / "conv.h5").read_bytes())
    model = load_model(path)
    trained = {name: array + 1 for name, array in model.state_dict().items()}
    model.load_state_dict(trained)
    save_model(model, path, path)
    assert list(tmp_path.iterdir()) == [path]
    for name, array in load_model(path).state_dict().items():
        assert torch.equal(array, trained[name])


def test_windows_separators(tmp_path: Path) -> None:
    path = tmp_path / "windows.weights.h5"
    with h5py.File(KERAS2 / "rnn.weights.h5") as source, h5py.File(path, "w") as file:
        for name, group in source["_layer_checkpoint_dependencies"].items():
            source.copy(group, file, f"_layer_checkpoint_dependencies\\{name}")
    expected = load_model(KERAS2 / "rnn.h5")
    model = build_model(expected.config)
    load_weights(model, path)
    for name, array in model.state_dict().items():
        assert torch.equal(array, expected.state_dict()[name])


def test_config_says_the_same_from_either_file() -> None:
    one, other = load_model(KERAS2 / "rnn.h5"), load_model(KERAS2 / "rnn.keras")
    built = build_model(one.config)
    assert built.config == one.config
    assert str(built) == str(one) == str(other)


def test_logits_stay_logits() -> None:
    whole, headless = (load_model(KERAS2 / "rnn.h5", logits=flag).eval() for flag in (False, True))
    rebuilt = build_model(headless.config).eval()
    rebuilt.load_state_dict(whole.state_dict())
    x = torch.from_numpy(np.load(KERAS2 / "rnn.npz")["x"])
    with torch.no_grad():
        assert torch.equal(rebuilt(x), headless(x))
        # They are stateful: two calls for one, `headless` had its first above.
        whole(x)
        torch.testing.assert_close(whole(x), torch.softmax(headless(x), -1))
    assert "softmax" not in dict(load_model(KERAS2 / "func.h5", logits=True).named_children())


def test_load_weights_of_another_model() -> None:
    model = load_model(DATA / "parity/gru64_reset_after_false_init.h5")
    before = {name: array.clone() for name, array in model.state_dict().items()}
    for other, message in (
        (DATA / "parity/gru64_reset_after_true_init.h5", "'embedding_1' has embeddings, which the"),
        (DICKENS, "'embedding_1' has embeddings, which the model has not"),
        (KERAS2 / "rnn.weights.h5", r"arrays of 2 gru layers, the model has 1 \(gru\)"),
        (KERAS2 / "rnn_weights_v2.h5", "'gru_1' has kernel, which the model has not"),
    ):
        with pytest.raises(InputError, match=message):
            load_weights(model, other)
    for name, array in model.state_dict().items():
        assert torch.equal(array, before[name])


def test_load_weights_of_another_size(tmp_path: Path) -> None:
    config = json.loads(load_model(KERAS2 / "rnn.h5").config)
    config["config"]["layers"][2]["config"]["units"] = 6
    with pytest.raises(InputError, match=r"'gru': kernel has shape \(4, 15\), .* needs \(4, 18\)"):
        load_weights(build_model(config), KERAS2 / "rnn.weights.h5")
    config["config"]["layers"][2]["config"]["reset_after"] = True
    with pytest.raises(InputError, match="layer 'gru'"):
        load_weights(build_model(config), KERAS2 / "rnn_weights_v2.h5")


def test_saving_what_does_not_fit(tmp_path: Path) -> None:
    template, target = KERAS2 / "conv.h5", tmp_path / "out.h5"
    arrays = {name: a.numpy() for name, a in load_model(template).state_dict().items()}
    lacking = {name: array for name, array in arrays.items() if name != "dense_2.bias"}
    for wrong, message in (
        (lacking, "lacks dense_2.bias"),
        ({**arrays, "more": arrays["dense_2.bias"]}, "has unknown more"),
        (
            {**arrays, "dense_2.bias": arrays["dense_2.weight"]},
            r"dense_2.bias is .* needs floats \(6,\)",
        ),
        ({**arrays, "dense_2.bias": np.zeros(6, "i8")}, "dense_2.bias is torch.int64"),
    ):
        with pytest.raises(InputError, match=message):
            save_model(wrong, template, target)
    with pytest.raises(InputError, match=r"lacks conv2d\.weight"):
        save_model(nn.Linear(2, 2), template, target)
    with pytest.raises(InputError, match="save_model then needs a KerasModel"):
        save_model(arrays, KERAS2 / "rnn_weights_v2.h5", target)
    with pytest.raises(InputError, match="cannot be written"):
        save_model(arrays, template, template / "out.h5")  # a file is no folder
    assert list(tmp_path.iterdir()) == []
