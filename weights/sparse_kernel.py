"""Gradients of a convolution of whose outputs a maximum is taken, from the outputs that won.

Only one output in each window gets a gradient. Of 2 x 2 three in four are zeros, with which a dense product multiplies
all the same. Here each gradient that is not zero is multiplied with the filter, and with its inputs, and no other is.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from weights.llvm import FLOAT, INDEX, INT, Code, Value
from weights.processor import Registers

_INPUT_BLOCK = 10
"""Vectors of an input's gradient that are in registers at once: few, so that what they need of all filters' weights
stays in the cache that is next to the processor."""


class Sizes(NamedTuple):
    """Of one image: the convolution's outputs, how many windows they have, and the filters."""

    height: int
    width: int
    windows: int
    channels: int
    filters: int
    rows: int
    columns: int


class Scratch(NamedTuple):
    """How the kernel's memory for integers and for floats is divided.

    A filter's list and a pixel's list have the gradients that are not zero: where to find the other factor, and the
    value. A filter has one at most in each window, a pixel one at most in each filter.
    """

    filter_counts: int
    filter_places: int
    pixel_counts: int
    pixel_places: int
    integers: int
    filter_values: int
    pixel_values: int
    floats: int


def scratch(sizes: Sizes) -> Scratch:
    """Where everything begins, and how much there is."""
    pixels = sizes.height * sizes.width
    of_filters, of_pixels = sizes.filters * sizes.windows, pixels * sizes.filters
    lengths = (sizes.filters, of_filters, pixels, of_pixels)
    _, places, counts, more_places, integers = accumulate(lengths, initial=0)
    return Scratch(0, places, counts, more_places, integers, 0, of_filters, of_filters + of_pixels)


def gradients(
    sizes: Sizes, registers: Registers, cpu: str = "", features: str = ""
) -> Callable[..., None]:
    """Compile the kernel; it adds one image after the other to the gradients.

    Its arguments: the number of images, and pointers to

    - the weights' gradient (filters, rows, columns, channels), added to;
    - the padded images' gradient (images, height + rows - 1, width + columns - 1, channels), added to;
    - the maxima's gradient (images, windows, filters);
    - int64: which of the height * width outputs each maximum is;
    - the padded images;
    - the weights;
    - scratch memory, int32 and float32, as `scratch` says.

    Channels must be a multiple of `registers.lanes`.
    """
    pointer, integers = FLOAT.as_pointer(), INT.as_pointer()
    kinds = [INDEX, *[pointer] * 3, INDEX.as_pointer(), pointer, pointer, integers, pointer]
    code = Code("gradients", kinds, registers.lanes)
    images, d_weight, d_image, d_maximum, winner, image, weight, places, values = code.code.args
    for argument in code.code.args[1:]:
        argument.add_attribute("noalias")
    maxima = sizes.windows * sizes.filters
    wide = sizes.width + sizes.columns - 1
    padded = (sizes.height + sizes.rows - 1) * wide * sizes.channels
    lists = _Lists(code, sizes, places, values)
    with code.loop(images) as number:
        lists.fill(
            code.at(d_maximum, code.times(number, maxima)),
            code.at(winner, code.times(number, maxima)),
        )
        start = code.times(number, padded)
        lists.add_weight_gradients(d_weight, code.at(image, start), registers.number - 2)
        lists.add_image_gradients(code.at(d_image, start), weight)
    return code.compiled(cpu, features)


class _List(NamedTuple):
    """Pointers to how many gradients it has, to where the other factors are, and to the values."""

    count: Value
    places: Value
    values: Value


class _Lists:
    """Writes what is done with one image: the lists, and both gradients from them."""

    def __init__(self, code: Code, sizes: Sizes, places: Value, values: Value) -> None:
        self.code, self.sizes = code, sizes
        self.places, self.values = places, values
        self.wide = sizes.width + sizes.columns - 1
        self.filter_size = sizes.rows * sizes.columns * sizes.channels
        # Each vector of a filter: where it is there, and where its input is from the output's place on.
        self.taps = [
            (
                (row * sizes.columns + column) * sizes.channels + channel,
                (row * self.wide + column) * sizes.channels + channel,
            )
            for row in range(sizes.rows)
            for column in range(sizes.columns)
            for channel in range(0, sizes.channels, code.lanes)
        ]

    def of_filter(self, filter_: Value) -> _List:
        """A filter's list: places are in the image."""
        begins = scratch(self.sizes)
        begin = (begins.filter_counts, begins.filter_places, begins.filter_values)
        return self._list(filter_, self.sizes.windows, *begin)

    def of_pixel(self, pixel: Value) -> _List:
        """An output's list: places are in the weights."""
        begins = scratch(self.sizes)
        begin = (begins.pixel_counts, begins.pixel_places, begins.pixel_values)
        return self._list(pixel, self.sizes.filters, *begin)

    def _list(self, owner: Value, length: int, counts: int, places: int, values: int) -> _List:
        code, first = self.code, self.code.times(owner, length)
        return _List(
            code.at(self.places, owner, counts),
            code.at(self.places, first, places),
            code.at(self.values, first, values),
        )

    def fill(self, d_maximum: Value, winner: Value) -> None:
        """Make the lists of an image."""
        code, sizes = self.code, self.sizes
        with code.loop(sizes.filters) as filter_:
            code.store(INT(0), self.of_filter(filter_).count)
        with code.loop(sizes.height * sizes.width) as pixel:
            code.store(INT(0), self.of_pixel(pixel).count)
        with code.loop(sizes.windows) as window, code.loop(sizes.filters) as filter_:
            element = code.sum(code.times(window, sizes.filters), filter_)
            value = code.load(code.at(d_maximum, element))
            pixel = code.load(code.at(winner, element))
            self._append(self.of_filter(filter_), self._input_of(pixel), value)
            self._append(self.of_pixel(pixel), code.times(filter_, self.filter_size), value)

    def _append(self, to: _List, place: Value, value: Value) -> None:
        """Write to a list's end, which moves on unless it is a zero: then the next one overwrites it."""
        code = self.code
        length = code.load(to.count)
        last = code.sext(length, INDEX)
        code.store(code.trunc(place, INT), code.at(to.places, last))
        code.store(value, code.at(to.values, last))
        some = code.fcmp_unordered("!=", value, FLOAT(0.0))
        code.store(code.add(length, code.zext(some, INT)), to.count)

    def _input_of(self, pixel: Value) -> Value:
        """Where in the padded image the inputs of an output begin."""
        code, width = self.code, INDEX(self.sizes.width)
        row, column = code.sdiv(pixel, width), code.srem(pixel, width)
        return code.times(code.sum(code.times(row, self.wide), column), self.sizes.channels)

    def add_weight_gradients(self, d_weight: Value, image: Value, block: int) -> None:
        """Add gradient * input to each filter's gradient; `block` vectors of that are in registers at once."""
        code = self.code
        with code.loop(self.sizes.filters) as filter_:
            own = code.at(d_weight, code.times(filter_, self.filter_size))
            for start in range(0, len(self.taps), block):
                taps = self.taps[start : start + block]
                self._add(own, image, taps, self.of_filter(filter_))

    def add_image_gradients(self, d_image: Value, weight: Value) -> None:
        """Add gradient * filter to the gradient of each output's inputs."""
        code, sizes = self.code, self.sizes
        for start in range(0, len(self.taps), _INPUT_BLOCK):
            taps = [(there, here) for here, there in self.taps[start : start + _INPUT_BLOCK]]
            with code.loop(sizes.height * sizes.width) as pixel:
                own = code.at(d_image, self._input_of(pixel))
                self._add(own, weight, taps, self.of_pixel(pixel))

    def _add(self, total: Value, factor: Value, taps: list[tuple[int, int]], of: _List) -> None:
        """Add value * factor[place + tap] to total[tap], vector by vector, for all of a list."""
        code = self.code
        sums = [code.vector(code.at(total, tap)) for tap, _ in taps]
        with code.loop(code.index(of.count), sums) as entry:
            place = code.index(code.at(of.places, entry))
            value = code.spread(code.load(code.at(of.values, entry)))
            for number, (_, tap) in enumerate(taps):
                factors = code.vector(code.at(factor, place, tap))
                sums[number] = code.multiply_add(value, factors, sums[number])
        for (tap, _), vector in zip(taps, sums, strict=True):
            code.put(vector, code.at(total, tap))
