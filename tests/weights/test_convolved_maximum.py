"""The gradient that leaves out what did not win, against autograd over torch's own operators."""

import sys
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.catalogue import load_task
from weights.convolved_maximum import _kernel, convolved_maximum
from weights.image_layers import Conv2D, MaxPooling2D, convolved_and_pooled
from weights.layers import linear
from weights.processor import registers

if registers() is None:
    pytest.skip("no llvmlite, or a processor without AVX2", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("on_one_thread")


def operands(channels: int, filters: int, side: int, taps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(channels + filters)
    shapes = [(3, channels, side, side + 2), (filters, channels, taps, taps), (filters,)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def ours(given: list[Tensor], padding: int, window: int) -> Tensor | None:
    images, weight, bias = given
    return convolved_maximum(images, weight, bias, (padding, padding), window)


def torchs(given: list[Tensor], padding: int, window: int) -> Tensor:
    images, weight, bias = given
    return F.max_pool2d(F.conv2d(images, weight, bias, padding=padding), window)


def gradients(maxima: Tensor, of: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """For a gradient of which a fifth is zero, as behind a ReLU."""
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(maxima.shape, generator=generator)
    gradient *= torch.rand(maxima.shape, generator=generator) < 0.8
    return [*torch.autograd.grad(maxima, of, gradient.to(dtype))]


def check(got: Iterable[Tensor], wanted: Iterable[Tensor], tolerance: float = 2e-6) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        largest = float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    ("channels", "filters", "side", "taps", "padding", "window"),
    [
        (32, 64, 14, 5, 2, 2),  # the tutorial's second layer
        (16, 5, 9, 3, 0, 2),  # a row and a column are in no window
        (48, 20, 12, 3, 1, 3),
        (16, 8, 8, 1, 0, 4),
    ],
)
def test_gradients_are_torchs(
    channels: int, filters: int, side: int, taps: int, padding: int, window: int
) -> None:
    given = operands(channels, filters, side, taps)
    maxima = ours(given, padding, window)
    assert maxima is not None
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    wanted = torchs(exact, padding, window)
    check([maxima], [wanted])
    check(gradients(maxima, given, torch.float32), gradients(wanted, exact, torch.float64))


def test_gradients_are_torchs_with_the_registers_of_avx2() -> None:
    """Compiled for an older processor; this one runs it."""
    from weights.sparse_kernel import Sizes, scratch
    from weights.sparse_kernel import gradients as compile_gradients

    sizes = Sizes(10, 12, 30, 24, 7, 3, 3)
    vectors = registers({"avx2": True, "fma": True})
    assert vectors == (8, 16)
    kernel = compile_gradients(sizes, vectors, cpu="haswell", features="+avx2,+fma")
    images, weight, _ = operands(24, 7, 10, 3)
    outputs = F.conv2d(images, weight, padding=1)
    maxima, winners = F.max_pool2d(outputs, 2, return_indices=True)
    wanted = gradients(maxima, [images, weight], torch.float32)
    needs = scratch(sizes)
    d_weight, d_image = torch.zeros(7, 3, 3, 24), torch.zeros(3, 12, 14, 24)
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(maxima.shape, generator=generator)
    gradient *= torch.rand(maxima.shape, generator=generator) < 0.8
    last = [each.detach().permute(0, 2, 3, 1).contiguous() for each in (gradient, winners)]
    padded = F.pad(images.detach().permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    factors = weight.detach().permute(0, 2, 3, 1).contiguous()
    memory = [torch.empty(needs.integers, dtype=torch.int32), torch.empty(needs.floats)]
    tensors = [d_weight, d_image, *last, padded, factors, *memory]
    kernel(len(images), *[tensor.data_ptr() for tensor in tensors])
    got = [d_image[:, 1:-1, 1:-1].permute(0, 3, 1, 2), d_weight.permute(0, 3, 1, 2)]
    check(got, wanted)


def test_under_autocast() -> None:
    given = operands(32, 8, 14, 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = given[0].bfloat16()
        maxima = ours([half, *given[1:]], 1, 2)
        wanted = torchs([half, *given[1:]], 1, 2)
    assert maxima is not None
    assert maxima.dtype == torch.bfloat16
    assert torch.equal(maxima, wanted)
    of_ours, of_torchs = (gradients(y, given, torch.bfloat16) for y in (maxima, wanted))
    assert {gradient.dtype for gradient in of_ours} == {torch.float32}
    check(of_ours, of_torchs, 0.02)


def test_a_gradient_that_is_not_a_number_stays_one() -> None:
    given = operands(16, 4, 8, 3)
    maxima = ours(given, 1, 2)
    assert maxima is not None
    for gradient in torch.autograd.grad(maxima.sum() * float("nan"), given):
        assert gradient.isnan().any()


def test_frozen_weights_and_evaluation_take_torchs() -> None:
    images, weight, bias = given = operands(16, 4, 8, 3)
    assert ours([images, weight.detach(), bias], 1, 2) is None
    with torch.no_grad():
        assert ours(given, 1, 2) is None
    torch.set_num_threads(2)
    assert ours(given, 1, 2) is None


def test_channels_that_fill_no_register_take_torchs() -> None:
    assert ours(operands(6, 4, 8, 3), 1, 2) is None


def test_without_llvmlite_torchs_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    _kernel.cache_clear()
    assert ours(operands(16, 4, 8, 3), 1, 2) is None
    _kernel.cache_clear()


@pytest.mark.parametrize(
    ("layer", "pooling", "skips"),
    [
        ({}, {}, True),
        ({"activation": linear}, {}, True),
        ({"padding": "same"}, {"padding": "same"}, True),
        ({"window": (2, 2), "padding": "same"}, {}, True),  # padded on one side only
        ({"window": (2, 4)}, {"padding": "same"}, False),  # windows that reach out of the image
        ({"activation": torch.tanh}, {}, False),
        ({"strides": (2, 2)}, {}, False),
        ({"dilation": (2, 2)}, {}, False),
        ({"groups": 2}, {}, False),
        ({}, {"strides": (1, 1)}, False),
        ({}, {"window": (2, 3), "strides": (2, 3)}, False),
    ],
)
def test_layers_together_are_the_layers_one_by_one(
    layer: dict[str, Any], pooling: dict[str, Any], skips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: dict[str, Any] = {"window": (3, 3), "strides": (1, 1), "padding": "valid"}
    plain |= {"dilation": (1, 1), "groups": 1, "use_bias": True, "activation": F.relu}
    convolution = Conv2D(32, 8, **plain | layer)
    for parameter in convolution.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    following = MaxPooling2D(**{"window": (2, 2), "strides": (2, 2), "padding": "valid"} | pooling)
    images = torch.randn(2, 12, 14, 32, generator=torch.Generator().manual_seed(3))
    images.requires_grad_()
    taken = []

    def watched(*arguments: Any) -> Tensor | None:
        maxima = convolved_maximum(*arguments)
        taken.append(maxima is not None)
        return maxima

    monkeypatch.setattr("weights.image_layers.convolved_maximum", watched)
    got = convolved_and_pooled(convolution, following, images)
    wanted = following(convolution(images))
    assert (taken == [True]) == skips
    assert torch.equal(got, wanted)
    of = [images, *convolution.parameters()]
    check([*torch.autograd.grad(got.sum(), of)], [*torch.autograd.grad(wanted.sum(), of)], 1e-5)


def test_the_tutorials_model_has_the_gradients_of_two_threads() -> None:
    model = load_task("emnist_cnn").model()
    images = torch.rand(5, 28, 28, 1, generator=torch.Generator().manual_seed(4))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        model.zero_grad()
        F.cross_entropy(model(images), torch.arange(5)).backward()  # type: ignore[no-untyped-call]
        found.append(
            [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        )
    one, two = found
    assert len(one) == 8
    check(one, two, 1e-5)
