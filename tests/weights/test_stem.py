"""A first convolution with its maximum, against torch's own operators in float64."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.catalogue import load_task
from weights import convolved_maximum, stem
from weights.processor import registers

if registers() is None:
    pytest.skip("no llvmlite, or a processor without AVX2", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("on_one_thread")

SHAPES = [
    # channels, filters, rows, columns, padding, window
    (1, 32, 5, 5, (2, 2), 2),  # the tutorial's first layer
    (1, 16, 3, 3, (0, 0), 2),  # a row and a column are in no window
    (3, 64, 3, 4, (1, 0), 3),
    (1, 48, 1, 1, (0, 0), 5),  # a window's sums fill the registers
    (12, 16, 2, 2, (0, 1), 2),  # a row of weights has more sums than registers
]


def operands(channels: int, filters: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels + filters)
    weight = torch.randn(filters, channels, rows, columns, generator=generator)
    bias = torch.randn(filters, generator=generator)
    images = torch.randn(3, channels, 13, 15, generator=generator)
    return images, weight.requires_grad_(), bias.requires_grad_()


def ours(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], window: int
) -> Tensor | None:
    return convolved_maximum.convolved_maximum(images, weight, bias, padding, window)


def torchs(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], window: int
) -> Tensor:
    return F.max_pool2d(F.conv2d(images, weight, bias, padding=padding), window)


def slopes(maxima: Tensor) -> Tensor:
    """A gradient of the maxima of which a fifth is zero, as behind a ReLU."""
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(maxima.shape, generator=generator)
    return gradient * (torch.rand(maxima.shape, generator=generator) < 0.8)


def check(got: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    largest = float(wanted.detach().abs().max())
    assert got.shape == wanted.shape
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("channels", "filters", "rows", "columns", "padding", "window"), SHAPES)
def test_values_and_gradients_are_torchs(
    channels: int,
    filters: int,
    rows: int,
    columns: int,
    padding: tuple[int, int],
    window: int,
    biased: bool,
) -> None:
    images, weight, bias = operands(channels, filters, rows, columns)
    of = [weight, bias] if biased else [weight]
    exact = [tensor.detach().double().requires_grad_() for tensor in of]
    maxima = ours(images, weight, bias if biased else None, padding, window)
    wanted = torchs(images.double(), exact[0], exact[1] if biased else None, padding, window)
    assert maxima is not None
    check(maxima, wanted)
    gradients = torch.autograd.grad(maxima, of, slopes(maxima))
    for got, true in zip(
        gradients, torch.autograd.grad(wanted, exact, slopes(wanted).double()), strict=True
    ):
        assert got.dtype == torch.float32
        check(got, true)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_same_with_the_registers_of_avx2(
    shape: tuple[int, int, int, int, tuple[int, int], int],
) -> None:
    """Compiled for an older processor; this one runs it."""
    from weights.stem_kernel import Sizes, gradient, maxima

    *counts, padding, window = shape
    images, weight, bias = operands(*counts)
    outputs = F.conv2d(images, weight, bias, padding=padding)
    wanted = F.max_pool2d(outputs, window)
    channels, filters, rows, columns = counts
    height, width = outputs.shape[2:]
    sizes = Sizes(height, width, window, channels, filters, rows, columns)
    vectors = registers({"avx2": True, "fma": True})
    assert vectors == (8, 16)
    old = {"cpu": "haswell", "features": "+avx2,+fma"}
    down, across = padding
    padded = F.pad(images, (across, across, down, down)).permute(0, 2, 3, 1).contiguous()
    factors = weight.detach().permute(2, 3, 1, 0).contiguous()
    got = torch.empty(wanted.permute(0, 2, 3, 1).shape)
    winners, d_weight = torch.empty_like(got), torch.ones_like(factors)
    given = [got, winners, padded, factors, bias]
    maxima(sizes, vectors, **old)(3, *[tensor.data_ptr() for tensor in given])
    check(got.permute(0, 3, 1, 2), wanted)
    last = slopes(wanted).permute(0, 2, 3, 1).contiguous()
    given = [last, winners, padded, d_weight]
    gradient(sizes, vectors, **old)(3, *[tensor.data_ptr() for tensor in given])
    [true] = torch.autograd.grad(wanted, weight, slopes(wanted))
    check(d_weight.permute(3, 2, 0, 1), true + 1)  # it is added to


def test_the_first_of_equals_wins() -> None:
    _, weight, bias = operands(1, 16, 3, 3)
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, 0, 0] = (
        1.0  # of each window only this pixel differs: 2 x 2 windows look at 3 x 3 pixels
    )
    with torch.no_grad():
        weight.zero_()
    maxima = ours(images, weight, bias, (1, 1), 2)
    assert maxima is not None
    [got] = torch.autograd.grad(maxima.sum(), weight)
    [wanted] = torch.autograd.grad(torchs(images, weight, bias, (1, 1), 2).sum(), weight)
    assert wanted.abs().sum() > 0
    assert torch.equal(got, wanted)


def test_what_is_not_a_number_stays_one() -> None:
    images, weight, bias = operands(1, 16, 3, 3)
    images[1, 0, 6, 7] = float("nan")
    maxima = ours(images, weight, bias, (1, 1), 2)
    assert maxima is not None
    assert torch.equal(maxima.isnan(), torchs(images, weight, bias, (1, 1), 2).isnan())
    clean, weight, bias = operands(1, 16, 3, 3)
    maxima = ours(clean, weight, bias, (1, 1), 2)
    assert maxima is not None
    [gradient] = torch.autograd.grad(maxima.sum() * float("nan"), weight)
    assert gradient.isnan().all()


def test_under_autocast_it_multiplies_in_float32() -> None:
    images, weight, bias = operands(1, 16, 3, 3)
    plain = ours(images, weight, bias, (1, 1), 2)
    with torch.autocast("cpu", torch.bfloat16):
        maxima = ours(images, weight, bias, (1, 1), 2)
    assert maxima is not None
    assert plain is not None
    assert torch.equal(maxima, plain)


@pytest.mark.parametrize(
    ("channels", "filters", "rows"),
    [(1, 20, 3), (101, 16, 1), (1, 16, 13)],  # lanes left over, many weights, no whole window
)
def test_other_layers_take_torchs(channels: int, filters: int, rows: int) -> None:
    images, weight, bias = operands(channels, filters, rows, 1)
    assert ours(images, weight, bias, (0, 0), 2) is None


def test_other_numbers_evaluation_and_threads_take_torchs() -> None:
    images, weight, bias = operands(1, 16, 3, 3)
    assert ours(images, weight, bias, (1, 1), 2) is not None
    assert ours(images.double(), weight, bias, (1, 1), 2) is None
    assert ours(images, weight.detach(), bias, (1, 1), 2) is None
    with torch.no_grad():
        assert ours(images, weight, bias, (1, 1), 2) is None
    torch.set_num_threads(2)
    assert ours(images, weight, bias, (1, 1), 2) is None


def test_without_llvmlite_torchs_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    stem._kernels.cache_clear()
    images, weight, bias = operands(1, 16, 3, 3)
    assert ours(images, weight, bias, (1, 1), 2) is None
    stem._kernels.cache_clear()


def test_the_tutorials_model_begins_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def watched(*arguments: object) -> Tensor | None:
        found.append(stem.stem(*arguments))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(convolved_maximum, "stem", watched)
    load_task("emnist_cnn").model()(torch.rand(2, 28, 28, 1))
    [maxima] = found
    assert maxima is not None
    assert maxima.shape == (2, 32, 14, 14)
