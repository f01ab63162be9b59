"""Layers on their own: padding, memory layout, and what torch's own layers agree with."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasks.catalogue import load_task
from weights.image_layers import AveragePooling2D, Conv2D, MaxPooling2D, Pair
from weights.keras_arrays import variables
from weights.layers import (
    ACTIVATIONS,
    BatchNormalization,
    Embedding,
    LayerNormalization,
    ReLU,
    hard_sigmoid,
)
from weights.recurrent import GRU, LSTM


def conv(window: Pair, strides: Pair, dilation: Pair = (1, 1), groups: int = 1) -> Conv2D:
    layer = Conv2D(
        4, 6, window, strides, "same", dilation, groups, use_bias=True, activation=F.relu
    )
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def same_by_definition(layer: Conv2D, x: torch.Tensor) -> torch.Tensor:
    """TensorFlow's `same`: pad by hand to (ceil(size / stride) - 1) * stride + reach, the odd one last."""
    pads = []
    for axis in (1, 0):
        size = x.shape[1 + axis]
        reach = (layer.window[axis] - 1) * layer.dilation[axis] + 1
        stride = layer.strides[axis]
        total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        pads += [total // 2, total - total // 2]
    y = F.conv2d(
        F.pad(x.permute(0, 3, 1, 2), pads),
        layer.weight,
        layer.bias,
        layer.strides,
        0,
        layer.dilation,
        layer.groups,
    )
    return F.relu(y).permute(0, 2, 3, 1)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilated=st.booleans(),
)
def test_same_padding(size: Pair, window: Pair, strides: Pair, dilated: bool) -> None:
    # Keras has strides or dilation, not both.
    layer = conv(window, (1, 1), (2, 2), groups=2) if dilated else conv(window, strides, groups=2)
    x = torch.randn(2, *size, 4)
    y = layer(x)
    torch.testing.assert_close(y, same_by_definition(layer, x))
    assert tuple(y.shape[1:3]) == tuple(layer.output_size(size[axis], axis) for axis in (0, 1))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_pooling_sees_only_the_image(size: Pair, window: Pair, strides: Pair) -> None:
    """Every output is over the pixels inside the image alone, found by looping."""
    x = torch.randn(1, *size, 1) - 5
    for layer, reduce in (
        (MaxPooling2D(window, strides, "same"), torch.amax),
        (AveragePooling2D(window, strides, "same"), torch.mean),
    ):
        y = layer(x)
        for i, j in ((i, j) for i in range(y.shape[1]) for j in range(y.shape[2])):
            top = i * strides[0] - layer.margins(size[0], 0)[0]
            left = j * strides[1] - layer.margins(size[1], 1)[0]
            pixels = x[:, max(top, 0) : top + window[0], max(left, 0) : left + window[1]]
            torch.testing.assert_close(y[0, i, j, 0], reduce(pixels))


def test_images_are_never_copied() -> None:
    """Everything stays NHWC in memory, so that Flatten is a view; gradients too."""
    first, pool, second = conv((5, 5), (1, 1)), MaxPooling2D((2, 2), (2, 2), "same"), nn.Flatten()
    x = torch.randn(3, 14, 14, 4, requires_grad=True)
    images = pool(first(x))
    rows = second(images)
    assert images.is_contiguous()
    assert rows.data_ptr() == images.data_ptr()
    rows.square().sum().backward()
    assert x.grad is not None
    assert x.grad.is_contiguous()
    assert first.weight.grad is not None
    assert first.weight.grad.is_contiguous(memory_format=torch.channels_last)


def batch_norm(features: int) -> BatchNormalization:
    layer = BatchNormalization(
        features, 0.9, 1e-3, center=True, scale=True, bessel=True, trainable=True
    )
    with torch.no_grad():
        for array in layer.state_dict().values():
            array.copy_(torch.rand(features) + 0.5)
    return layer


def test_batch_normalization_is_torch_s_but_for_conventions() -> None:
    ours, theirs = batch_norm(5), nn.BatchNorm2d(5, eps=1e-3, momentum=0.1)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(4, 3, 3, 5) * 2 + 1
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        expected = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


@pytest.mark.parametrize("bessel", [True, False])
def test_batch_normalization_takes_a_single_row(bessel: bool) -> None:
    """The last batch of a client may hold one example."""
    layer = batch_norm(3)
    layer.bessel = bessel
    x = torch.randn(1, 3)
    torch.testing.assert_close(layer(x), layer.get_parameter("bias").expand(1, 3))
    assert layer.running_var.isfinite().all()


def test_layer_normalization_normalises() -> None:
    layer = LayerNormalization(64, 1e-6, center=False, scale=False)
    y = layer(torch.randn(3, 4, 64) * 3 + 2)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(-1, correction=0), torch.ones(3, 4), atol=1e-4, rtol=0)


def test_relu_by_pieces() -> None:
    layer = ReLU(max_value=2.0, negative_slope=0.5, threshold=1.0)
    x = torch.tensor([-1.0, 0.5, 1.0, 1.5, 3.0])
    assert layer(x).tolist() == [-1.0, -0.25, 1.0, 1.5, 2.0]


def test_hard_sigmoids_differ() -> None:
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(hard_sigmoid(x), (0.2 * x + 0.5).clamp(0, 1))
    torch.testing.assert_close(ACTIVATIONS["hard_sigmoid_v3"](x), F.relu6(x + 3) / 6)


def test_embedding_takes_ids_of_any_kind() -> None:
    layer = Embedding(5, 3)
    nn.init.normal_(layer.weight)
    ids = torch.tensor([[0, 4], [2, 2]])
    for kind in (torch.int64, torch.int32, torch.uint8, torch.float32):
        assert torch.equal(layer(ids.to(kind)), layer.weight[ids])


@pytest.mark.parametrize("class_name", ["GRU", "GRU after", "CuDNNGRU", "LSTM"])
@given(units=st.integers(1, 5), inputs=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_gates_there_and_back(class_name: str, units: int, inputs: int) -> None:
    """Keras's layout of every array is a rearrangement, undone bit by bit."""
    layer = (
        LSTM(inputs, units)
        if class_name == "LSTM"
        else GRU(inputs, units, reset_after=class_name != "GRU")
    )
    for variable in variables("x", class_name.partition(" ")[0], layer):
        array = torch.randn(variable.shape)
        tensors = variable.slot.to_torch(array)
        for target, tensor in zip(variable.slot.targets, tensors, strict=True):
            assert tensor.shape == layer.get_parameter(target).shape
        assert torch.equal(variable.slot.to_keras(*tensors), array)


def test_a_relu_taken_after_the_maximum_changes_no_bit() -> None:
    """Outputs and gradients of the EMNIST CNN against its layers one after the other."""
    model = load_task("emnist_cnn").build("")
    assert isinstance(model, nn.Sequential)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(20, 28, 28, 1, generator=generator)
    results = []
    for forward in (model.forward, functools.partial(nn.Sequential.forward, model)):
        model.zero_grad()
        outputs = forward(images)  # type: ignore[no-untyped-call]
        outputs.square().sum().backward()
        results.append([outputs.detach(), *(weight.grad for weight in model.parameters())])
    for ours, plain in zip(*results, strict=True):
        assert torch.equal(ours, plain)
