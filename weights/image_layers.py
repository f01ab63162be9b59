"""Keras's convolution and pooling as PyTorch modules.

They take and give (batch, height, width, channels). Inside, they see it as NCHW through `permute`,
which is what PyTorch calls the channels_last memory format: nothing is copied, and a Dense layer
behind a Flatten needs no reordering of its rows.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weights.convolved_maximum import convolved_maximum
from weights.layers import Activation, linear

Pair = tuple[int, int]
Padding = Literal["valid", "same"]


class Window(nn.Module):
    """What Conv2D and the pooling layers share: a window that steps over an image.

    Args:
        window: Height and width.
        strides: Steps in height and width.
        padding: `valid` for none, `same` for an output of ceil(size / stride).
        dilation: Spacing of the window's taps.
    """

    def __init__(
        self, window: Pair, strides: Pair, padding: Padding, dilation: Pair = (1, 1)
    ) -> None:
        super().__init__()
        self.window = window
        self.strides = strides
        self.padding = padding
        self.dilation = dilation

    def margins(self, size: int, axis: int) -> Pair:
        """Keras's padding before and after a side: the odd row or column goes to the end."""
        if self.padding == "valid":
            return 0, 0
        stride, reach = self.strides[axis], (self.window[axis] - 1) * self.dilation[axis] + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        return total // 2, total - total // 2

    def output_size(self, size: int, axis: int) -> int:
        """An output's side; below 1 where the window does not fit."""
        reach = (self.window[axis] - 1) * self.dilation[axis] + 1
        return (size + sum(self.margins(size, axis)) - reach) // self.strides[axis] + 1

    def padded(self, x: Tensor, value: float = 0.0) -> tuple[Tensor, Pair]:
        """An NCHW image, and the symmetric padding that is still to be added to it."""
        top, bottom = self.margins(x.shape[2], 0)
        left, right = self.margins(x.shape[3], 1)
        if (top, left) == (bottom, right):
            return x, (top, left)
        return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


class Conv2D(Window):
    """Keras's Conv2D.

    Attributes:
        weight: (filters, channels / groups, height, width), in the channels_last memory format.
        bias: (filters,) or None.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        window: Pair,
        strides: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
        use_bias: bool,
        activation: Activation,
    ) -> None:
        super().__init__(window, strides, padding, dilation)
        kernel = torch.empty(filters, channels // groups, *window)
        self.weight = nn.Parameter(kernel.to(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.empty(filters)) if use_bias else None
        self.groups = groups
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to (batch, height', width', filters)."""
        return self.activation(self.convolved(x))

    def convolved(self, x: Tensor) -> Tensor:
        """The same before the activation."""
        x, padding = self.padded(x.permute(0, 3, 1, 2))
        y = F.conv2d(x, self.weight, self.bias, self.strides, padding, self.dilation, self.groups)
        return y.permute(0, 2, 3, 1)

    @property
    def plain(self) -> bool:
        """Whether it looks at every place, at neighbouring pixels, in all channels."""
        return self.strides == self.dilation == (1, 1) and self.groups == 1


class MaxPooling2D(Window):
    """Keras's MaxPooling2D, NHWC to NHWC."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to (batch, height', width', channels)."""
        x, padding = self.padded(x.permute(0, 3, 1, 2), value=float("-inf"))
        return F.max_pool2d(x, self.window, self.strides, padding).permute(0, 2, 3, 1)


def convolved_and_pooled(convolution: Conv2D, pooling: MaxPooling2D, x: Tensor) -> Tensor:
    """Both layers, with less work where that gives the same.

    A function that never falls is taken after the maximum, where fewer values are left. Where windows do not overlap,
    training leaves out what did not win (`weights.convolved_maximum`).
    """
    if convolution.activation not in (F.relu, linear):
        return pooling.forward(convolution.forward(x))
    sizes = [convolution.output_size(x.shape[axis + 1], axis) for axis in (0, 1)]
    inside = all(pooling.margins(size, axis) == (0, 0) for axis, size in enumerate(sizes))
    window = pooling.window[0]
    maxima = None
    tiles = pooling.window == pooling.strides == (window, window) and window > 1
    if convolution.plain and inside and tiles:
        images, padding = convolution.padded(x.permute(0, 3, 1, 2))
        maxima = convolved_maximum(images, convolution.weight, convolution.bias, padding, window)
    if maxima is None:
        return convolution.activation(pooling.forward(convolution.convolved(x)))
    return convolution.activation(maxima.permute(0, 2, 3, 1))


class AveragePooling2D(Window):
    """Keras's AveragePooling2D, NHWC to NHWC: the mean over the window's pixels inside the image."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to (batch, height', width', channels)."""
        images = x.permute(0, 3, 1, 2)
        x, padding = self.padded(images)
        y = F.avg_pool2d(x, self.window, self.strides, padding, count_include_pad=False)
        if x is not images:
            # Padded by hand, so torch took the zeros for pixels: divide by the share of true ones.
            pixels, _ = self.padded(torch.ones_like(images[:1, :1]))
            y = y / F.avg_pool2d(pixels, self.window, self.strides)
        return y.permute(0, 2, 3, 1)


class GlobalAveragePooling2D(nn.Module):
    """Keras's GlobalAveragePooling2D."""

    def __init__(self, keepdims: bool) -> None:
        super().__init__()
        self.keepdims = keepdims

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) to (batch, channels), or (batch, 1, 1, channels)."""
        return x.mean((1, 2), keepdim=self.keepdims)
