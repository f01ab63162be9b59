"""A first convolution with a maximum over windows of its outputs, and its weights' gradient, in one pass each.

An image has one channel, or three: too few to fill a vector with, so vectors lie along the filters. The outputs, four
times the maxima for windows of 2 x 2, never are in memory: a window's are in registers until the largest is known.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from weights.llvm import FLOAT, INDEX, Code, Value
from weights.processor import Registers

_OTHERS = 7
"""Registers that the gradient needs beside its sums: slopes, winners, what is left of the slopes, a pixel."""


class Sizes(NamedTuple):
    """The convolution's outputs for one image, the side of a window, and the filters."""

    height: int
    width: int
    window: int
    channels: int
    filters: int
    rows: int
    columns: int

    @property
    def reach(self) -> int:
        """Numbers beside each other in an image that a row of a filter looks at."""
        return self.columns * self.channels

    @property
    def line(self) -> int:
        """Numbers in a row of a padded image."""
        return (self.width + self.columns - 1) * self.channels

    @property
    def padded(self) -> int:
        """Numbers in a padded image."""
        return (self.height + self.rows - 1) * self.line

    @property
    def places(self) -> list[int]:
        """Where in the image the outputs of a window look, from where the first one does on."""
        side = range(self.window)
        return [row * self.line + column * self.channels for row in side for column in side]

    @property
    def taps(self) -> list[int]:
        """Where in the image a filter's weights look, from where the first one does on."""
        return [row * self.line + tap for row in range(self.rows) for tap in range(self.reach)]


def maxima(
    sizes: Sizes, registers: Registers, cpu: str = "", features: str = ""
) -> Callable[..., None]:
    """Compile the forward kernel.

    Its arguments: the number of images, and pointers to

    - the maxima (images, height // window, width // window, filters), written;
    - which output of its window each is, from 0 on, as a float, written;
    - the padded images (images, height + rows - 1, width + columns - 1, channels);
    - the weights (rows, columns, channels, filters);
    - the bias (filters,).

    Filters must be a multiple of `registers.lanes`.
    """
    code = _code("maxima", 5, registers)
    images, largest, winner, image, weight, bias = code.code.args
    for lanes in _blocks(code, sizes, registers):
        for window, corner in _windows(code, sizes, images):
            sums = [code.vector(code.at(bias, lane)) for lane in lanes] * len(sizes.places)
            for tap, offset in enumerate(sizes.taps):
                own = [code.at(weight, lane, tap * sizes.filters) for lane in lanes]
                factors = [code.vector(pointer) for pointer in own]
                for number, place in enumerate(sizes.places):
                    pixel = code.spread(code.load(code.at(image, corner, place + offset)))
                    for total, factor in enumerate(factors, number * len(lanes)):
                        sums[total] = code.multiply_add(pixel, factor, sums[total])
            for number, lane in enumerate(lanes):
                best, which = _largest(code, sums[number :: len(lanes)])
                code.put(best, code.at(largest, window, lane))
                code.put(which, code.at(winner, window, lane))
    return code.compiled(cpu, features)


def gradient(
    sizes: Sizes, registers: Registers, cpu: str = "", features: str = ""
) -> Callable[..., None]:
    """Compile the weights' gradient, from that of the maxima.

    Its arguments: the number of images, and pointers to

    - the maxima's gradient (images, height // window, width // window, filters);
    - which output of its window each is, and the padded images, as above;
    - the weights' gradient (rows, columns, channels, filters), added to.
    """
    code = _code("gradient", 4, registers)
    images, d_maximum, winner, image, d_weight = code.code.args
    for lanes in _blocks(code, sizes, registers):
        # As many weights of a row as the registers hold: every window is read again for the next ones.
        most = max((registers.number - _OTHERS) // len(lanes), 1)
        with code.loop(sizes.rows) as row:
            for first in range(0, sizes.reach, most):
                taps = range(first, min(first + most, sizes.reach))
                start = code.times(row, sizes.reach * sizes.filters)
                own = [
                    code.at(d_weight, start, lane, tap * sizes.filters)
                    for tap in taps
                    for lane in lanes
                ]
                sums = [code.vector(pointer) for pointer in own]
                for window, corner in _windows(code, sizes, images, sums):
                    looks = code.sum(corner, code.times(row, sizes.line))
                    slopes = [code.vector(code.at(d_maximum, window, lane)) for lane in lanes]
                    which = [code.vector(code.at(winner, window, lane)) for lane in lanes]
                    for number, place in enumerate(sizes.places):
                        won = _where(code, number, which, slopes)
                        for position, tap in enumerate(taps):
                            pixel = code.spread(code.load(code.at(image, looks, place + tap)))
                            for total, slope in enumerate(won, position * len(lanes)):
                                sums[total] = code.multiply_add(pixel, slope, sums[total])
                for pointer, vector in zip(own, sums, strict=True):
                    code.put(vector, pointer)
    return code.compiled(cpu, features)


def _code(name: str, pointers: int, registers: Registers) -> Code:
    code = Code(name, [INDEX, *[FLOAT.as_pointer()] * pointers], registers.lanes)
    for argument in code.code.args[1:]:
        argument.add_attribute("noalias")
    return code


def _blocks(code: Code, sizes: Sizes, registers: Registers) -> Iterator[list[Value]]:
    """Which filters' vectors are worked on together, two if their sums fit into the registers: where each begins.

    What is written with that is done for all filters.
    """
    lanes = registers.lanes
    two = sizes.filters % (2 * lanes) == 0 and 2 * len(sizes.places) + 3 <= registers.number
    size = 2 * lanes if two else lanes
    with code.loop(sizes.filters // size) as block:
        first = code.times(block, size)
        yield [code.sum(first, lane) for lane in range(0, size, lanes)]


def _windows(
    code: Code, sizes: Sizes, images: Value, sums: list[Value] | None = None
) -> Iterator[tuple[Value, Value]]:
    """Where a window's maxima are, and where its first output looks; what is written with that is done for all windows.

    Args:
        code: What the loops over images, rows and columns are written to.
        sizes: Of an image.
        images: How many.
        sums: What is carried from window to window, as in `Code.loop`.
    """
    down, across = sizes.height // sizes.window, sizes.width // sizes.window
    with code.loop(images, sums) as image, code.loop(down, sums) as y, code.loop(across, sums) as x:
        number = code.sum(code.times(code.sum(code.times(image, down), y), across), x)
        row = code.times(y, sizes.window * sizes.line)
        column = code.times(x, sizes.window * sizes.channels)
        corner = code.sum(code.times(image, sizes.padded), row, column)
        yield code.times(number, sizes.filters), corner


def _largest(code: Code, values: list[Value]) -> tuple[Value, Value]:
    """The largest of some vectors, lane by lane: the first of equals, NaN before all; and which one it is."""
    best, which = values[0], code.zeros()
    for number, value in enumerate(values[1:], 1):
        greater = code.fcmp_ordered(">", value, best)
        takes = code.or_(greater, code.fcmp_unordered("uno", value, value))
        best = code.select(takes, value, best)
        which = code.select(takes, _everywhere(code, number), which)
    return best, which


def _where(code: Code, number: int, which: list[Value], vectors: list[Value]) -> list[Value]:
    """The vectors where that one has won, and 0 elsewhere."""
    wins = [code.fcmp_ordered("==", one, _everywhere(code, number)) for one in which]
    zeros = code.zeros()
    return [code.select(won, vector, zeros) for won, vector in zip(wins, vectors, strict=True)]


def _everywhere(code: Code, number: int) -> Value:
    return code.floats([float(number)] * code.lanes)
