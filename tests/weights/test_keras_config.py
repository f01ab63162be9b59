"""Configs in, modules out: what is built, how it is initialised, and what is refused."""

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from settings.errors import InputError
from weights.keras import KerasModel, build_model
from weights.keras_arrays import ARRAYS
from weights.keras_layers import BUILDERS
from weights.recurrent import reset_states


def sequential(shape: list[int | None], *layers: tuple[str, dict[str, Any]], **more: Any) -> str:
    listed: list[dict[str, Any]] = [
        {"class_name": "InputLayer", "config": {"name": "input", "batch_shape": [None, *shape]}}
    ]
    for class_name, options in layers:
        listed.append({"class_name": class_name, "config": {"name": class_name.lower(), **options}})
    return json.dumps({"class_name": "Sequential", "config": {"layers": listed}, **more})


def built(shape: list[int | None], class_name: str, **options: Any) -> Any:
    """One layer, freshly initialised."""
    return build_model(sequential(shape, (class_name, options)))[0]


def test_state_names_and_shapes() -> None:
    model = build_model(
        sequential(
            [None],
            ("Embedding", {"input_dim": 7, "output_dim": 3}),
            ("GRU", {"units": 4, "reset_after": True}),
            ("BatchNormalization", {}),
            ("Dense", {"units": 2, "use_bias": False}),
        )
    )
    assert {name: tuple(array.shape) for name, array in model.state_dict().items()} == {
        "embedding.weight": (7, 3),
        "gru.weight_ih": (12, 3),
        "gru.weight_hh": (12, 4),
        "gru.bias_ih": (12,),
        "gru.bias_hh": (12,),
        "batchnormalization.weight": (4,),
        "batchnormalization.bias": (4,),
        "batchnormalization.running_mean": (4,),
        "batchnormalization.running_var": (4,),
        "dense.weight": (2, 4),
    }
    assert all(array.device.type == "cpu" for array in model.state_dict().values())
    twin = build_model(model.config)
    assert str(twin) == str(model)
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()


def test_feed_forward_models_can_be_pickled_for_worker_processes() -> None:
    model = build_model(
        sequential([4], ("Dense", {"units": 3, "activation": "softmax"}), ("ReLU", {}))
    )
    x = torch.randn(2, 4)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))  # noqa: S301


def test_every_array_has_a_place() -> None:
    assert ARRAYS.keys() <= BUILDERS.keys()
    for class_name, slots in ARRAYS.items():
        shape: list[int | None] = [4, 4, 2] if class_name == "Conv2D" else [4, 2]
        options: dict[str, Any] = {"units": 3, "filters": 2, "kernel_size": 3}
        options |= {"input_dim": 5, "output_dim": 2}
        wanted = {"Conv2D": ("filters", "kernel_size"), "Embedding": ("input_dim", "output_dim")}
        given = wanted.get(class_name, () if "Norm" in class_name else ("units",))
        layer = built(shape, class_name, **{key: options[key] for key in given})
        targets = {target for slot in slots.values() for target in slot.targets}
        assert layer.state_dict().keys() == targets, class_name


def test_same_seed_same_model() -> None:
    config = sequential([3], ("Dense", {"units": 2}))
    torch.manual_seed(3)
    first = build_model(config).state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(first[name], a) for name, a in build_model(config).state_dict().items())


@torch.no_grad()
def test_default_initializers() -> None:
    torch.manual_seed(0)
    dense = built([300], "Dense", units=200)
    limit = (6 / 500) ** 0.5
    assert 0.97 * limit < float(dense.weight.abs().max()) <= limit
    assert not dense.bias.any()
    conv = built([9, 9, 20], "Conv2D", filters=30, kernel_size=5)
    limit = (6 / (25 * 20 + 25 * 30)) ** 0.5
    assert 0.97 * limit < float(conv.weight.abs().max()) <= limit
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    gru = built([5, 8], "GRU", units=16, reset_after=True)
    # Orthogonal over all gates together, which the order of the gates does not change.
    torch.testing.assert_close(gru.weight_hh.T @ gru.weight_hh, torch.eye(16))
    embedding = built([None], "Embedding", input_dim=100, output_dim=50)
    assert 0.0495 < float(embedding.weight.abs().max()) <= 0.05
    lstm = built([5, 8], "LSTM", units=3)
    assert lstm.bias_ih.tolist() == [0] * 3 + [1] * 3 + [0] * 6
    assert not built([5, 8], "LSTM", units=3, unit_forget_bias=False).bias_ih.any()
    norm = built([5], "BatchNormalization")
    assert [float(a.mean()) for a in norm.state_dict().values()] == [1, 0, 0, 1]


@torch.no_grad()
@pytest.mark.parametrize(
    ("initializer", "mean", "deviation", "limit"),
    [
        ("zeros", 0, 0, 0),
        ({"class_name": "Ones", "config": {}}, 1, 0, 1),
        ({"class_name": "Constant", "config": {"value": 0.5}}, 0.5, 0, 0.5),
        ({"class_name": "RandomUniform", "config": {"minval": 0, "maxval": 2}}, 1, 0.577, 2),
        ({"class_name": "RandomNormal", "config": {"mean": 1, "stddev": 0.1}}, 1, 0.1, 2),
        ({"class_name": "TruncatedNormal", "config": {"stddev": 1, "seed": 3}}, 0, 0.88, 2),
        ("glorot_normal", 0, 400**-0.5, 2 / 0.879 * 400**-0.5),
        ("HeUniform", 0, (2 / 300) ** 0.5, (6 / 300) ** 0.5),
        ("he_normal", 0, (2 / 300) ** 0.5, 2 / 0.879 * (2 / 300) ** 0.5),
        ({"class_name": "LecunNormal", "config": {"seed": None}}, 0, 300**-0.5, 0.14),
        (
            {
                "class_name": "VarianceScaling",
                "config": {"scale": 3.0, "mode": "fan_out", "distribution": "uniform"},
            },
            0,
            (3 / 500) ** 0.5,
            (9 / 500) ** 0.5,
        ),
    ],
)
def test_initializers(initializer: Any, mean: float, deviation: float, limit: float) -> None:
    torch.manual_seed(0)
    kernel = built([300], "Dense", units=500, kernel_initializer=initializer).weight
    assert isinstance(kernel, Tensor)
    assert float(kernel.mean()) == pytest.approx(mean, abs=0.01)
    assert float(kernel.std()) == pytest.approx(deviation, rel=0.02)
    assert float(kernel.abs().max()) <= limit + 1e-6


def test_frozen_layers_stay_frozen() -> None:
    config = sequential(
        [3], ("Dense", {"units": 2, "trainable": False}), ("BatchNormalization", {})
    )
    model = build_model(config)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "batchnormalization.weight",
        "batchnormalization.bias",
    ]
    norm = built([3], "BatchNormalization", trainable=False).train()
    norm(torch.randn(8, 3))
    assert not norm.running_mean.any()


def test_dropout_only_in_training() -> None:
    model = build_model(sequential([100], ("Dropout", {"rate": 0.5})))
    x = torch.ones(4, 100)
    assert torch.equal(model.eval()(x), x)
    assert set(model.train()(x).unique().tolist()) == {0.0, 2.0}


def test_stateful_layers_can_start_again() -> None:
    model = build_model(sequential([None, 3], ("GRU", {"units": 2, "stateful": True})))
    x = torch.randn(2, 4, 3)
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    reset_states(model)
    assert torch.equal(model(x), first)


def test_hard_sigmoid_is_the_version_s() -> None:
    x = torch.tensor([[-2.9, -1.0, 0.5, 2.7]])
    for version, expected in (("2.14.0", 0.2 * x + 0.5), ("3.1.0", x / 6 + 0.5)):
        text = sequential(
            [4], ("Activation", {"activation": "hard_sigmoid"}), keras_version=version
        )
        torch.testing.assert_close(build_model(text)(x), expected.clamp(0, 1))
        # Keras 3's `model.to_json()` names no version, but `KerasModel.config` always does.
        assert json.loads(build_model(text).config)["keras_version"] == version
    options = {"units": 2, "recurrent_activation": "hard_sigmoid"}
    old, new = (
        build_model(sequential([None, 3], ("GRU", options), keras_version=version))
        for version in ("2.4.0", "3.0.0")
    )
    new.load_state_dict(old.state_dict())
    x = torch.randn(2, 5, 3)
    assert not torch.allclose(old(x), new(x))


REFUSED: dict[str, tuple[list[int | None], str, dict[str, Any], str]] = {
    "mask_zero": (
        [None],
        "Embedding",
        {"input_dim": 2, "output_dim": 2, "mask_zero": True},
        "mask_",
    ),
    "return_state": ([3, 2], "GRU", {"units": 2, "return_state": True}, "return_state=True"),
    "time_major": ([3, 2], "LSTM", {"units": 2, "time_major": True}, "time_major=True"),
    "dropout": ([3, 2], "GRU", {"units": 2, "dropout": 0.1}, "dropout=0.1"),
    "recurrent dropout": ([3, 2], "LSTM", {"units": 2, "recurrent_dropout": 0.1}, "recurrent_drop"),
    "constraint": ([3], "Dense", {"units": 2, "bias_constraint": "non_neg"}, "bias_constraint"),
    "future option": ([3], "Dense", {"units": 2, "magic": 7}, "not supported: magic=7"),
    "no units": ([3], "Dense", {}, "units is None, not a size"),
    "units": ([3], "Dense", {"units": True}, "units is True, not a size"),
    "bias": ([3], "Dense", {"units": 2, "use_bias": "no"}, "neither true nor false"),
    "rate": ([3], "Dropout", {"rate": "x"}, "rate is 'x', not a number"),
    "rate above 1": ([3], "Dropout", {"rate": 1.5}, "cannot be built"),
    "kernel": ([9, 9, 1], "Conv2D", {"filters": 1, "kernel_size": [3, 3, 3]}, "cannot be built"),
    "padding": ([9, 9, 1], "MaxPooling2D", {"padding": "causal"}, "unknown padding 'causal'"),
    "groups": ([9, 9, 3], "Conv2D", {"filters": 4, "kernel_size": 1, "groups": 2}, "do not divide"),
    "rank": ([9, 3], "Conv2D", {"filters": 4, "kernel_size": 1}, "needs inputs of 4 axes"),
    "sequence": ([3], "GRU", {"units": 2}, "needs inputs of 3 axes"),
    "small image": ([2, 2, 1], "Conv2D", {"filters": 1, "kernel_size": 3}, "does not fit"),
    "axis": ([4, 4, 3], "BatchNormalization", {"axis": 1}, "axis 1 is not supported"),
    "softmax axis": ([4, 3], "Softmax", {"axis": 1}, "axis 1 is not supported"),
    "renorm": ([4], "BatchNormalization", {"renorm": True}, "not supported: renorm=True"),
    "reshape": ([4], "Reshape", {"target_shape": [3]}, "does not fit"),
    "reshape twice": ([4], "Reshape", {"target_shape": [-1, -1]}, "more than one -1"),
    "reshape odd": ([4], "Reshape", {"target_shape": [-1, 3]}, "does not fit"),
    "unknown features": ([None], "Dense", {"units": 2}, "needs a known last axis"),
    "initializer": (
        [3],
        "Dense",
        {"units": 2, "kernel_initializer": "evil"},
        "unknown initializer",
    ),
    "initializer's options": (
        [3],
        "Dense",
        {"units": 2, "kernel_initializer": {"class_name": "Zeros", "config": {"x": 1}}},
        "initializer Zeros",
    ),
    "recurrent activation": (
        [3, 2],
        "GRU",
        {"units": 2, "recurrent_activation": "elu"},
        "unknown recurrent activation 'elu'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_options(case: str) -> None:
    shape, class_name, options, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        build_model(sequential(shape, (class_name, options)))
    assert message in str(caught.value)
    assert f"layer {class_name.lower()!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def graph(*nodes: tuple[str, list[str]], output: str, **call: Any) -> dict[str, Any]:
    """A functional model of Dense layers in Keras 2's terms: names and what each takes."""
    layers: list[dict[str, Any]] = []
    for name, sources in nodes:
        inbound = [[[source, 0, 0, call] for source in sources]] if sources else []
        options = {"units": 2} if sources else {"batch_input_shape": [None, 3]}
        layers.append(
            {
                "class_name": "Dense" if sources else "InputLayer",
                "name": name,
                "config": {"name": name, **options},
                "inbound_nodes": inbound,
            }
        )
    inner = {"name": "f", "layers": layers, "output_layers": [[output, 0, 0]]}
    return {"class_name": "Functional", "config": inner}


def test_functional_chains_come_in_any_order() -> None:
    model = build_model(graph(("b", ["a"]), ("i", []), ("c", ["b"]), ("a", ["i"]), output="c"))
    assert isinstance(model, KerasModel)
    assert [name for name, _ in model.named_children()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (graph(("i", []), ("a", ["i"]), ("b", ["i"]), output="a"), "'i' branches to a, b"),
        (graph(("i", []), ("a", ["i", "i"]), output="a"), "'a' has 2 inputs"),
        (graph(("i", []), ("j", []), ("a", ["i"]), output="a"), "has 2 inputs, only one"),
        (graph(("i", []), ("a", ["i"]), ("b", ["a"]), output="a"), "no chain of layers"),
        (graph(("i", []), ("a", ["b"]), ("b", ["a"]), output="b"), "no chain of layers"),
        (graph(("i", []), ("a", ["i"]), output="a", training=True), "called with options"),
        (graph(("a", ["a"]), output="a"), "has 0 inputs"),
    ],
)
def test_functional_models_that_are_no_chain(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(config)


def test_sequential_without_a_shape() -> None:
    layer = {"class_name": "Dense", "config": {"name": "d", "units": 2}}
    inner: dict[str, Any] = {"layers": [layer]}
    with pytest.raises(InputError, match="'d' does not say its input's shape"):
        build_model({"class_name": "Sequential", "config": inner})
    inner["build_input_shape"] = [None, 3]
    assert build_model({"class_name": "Sequential", "config": inner})[0].weight.shape == (2, 3)
    inner["build_input_shape"] = [None, 3.5]
    with pytest.raises(InputError, match="not a list of sizes"):
        build_model({"class_name": "Sequential", "config": inner})


def test_custom_classes_are_refused() -> None:
    layer = {"class_name": "Dense", "module": "evil.layers", "config": {"name": "d", "units": 2}}
    with pytest.raises(InputError, match="custom class, evil's Dense"):
        build_model({"class_name": "Sequential", "config": [layer]})
