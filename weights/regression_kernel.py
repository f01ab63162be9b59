"""Softmax regression by plain SGD, from the first batch to the last.

A step is a few microseconds of arithmetic; to start its operations one by one takes a hundred times as long.
"""

from collections.abc import Callable
from typing import NamedTuple

from weights.llvm import FLOAT, INDEX, Code, Registers, Value

_MOST_ROWS = 10
"""Rows of a block: their sums are in registers, and so are the places of their inputs."""


_MOST_TERMS = 64


class Layout(NamedTuple):
    """How the kernel sees its arrays: rows of a batch come in blocks, classes fill whole vectors."""

    rows: int
    columns: int


def layout(classes: int, registers: Registers) -> Layout:
    """Rows of a block, and floats that a row of scores takes."""
    vectors = -(-classes // registers.lanes)
    return Layout(min(_MOST_ROWS, (registers.number - 4) // vectors), vectors * registers.lanes)


def training(
    features: int, classes: int, registers: Registers, cpu: str = "", target: str = ""
) -> Callable[..., None]:
    """Compile the kernel. Its arguments: the number of steps, that of blocks in a step's batch, and pointers to

    - the weights (features + 1, columns), trained in place: the last row is the bias, and -inf where no class is;
    - the inputs (examples, features);
    - int64: the classes that they are of;
    - int64: which example each row of each batch is;
    - what each row weighs in its batch's mean, times the learning rate; 0 for rows that fill up a block;
    - the scores of each row before its step (steps * blocks * rows, columns), written;
    - scratch memory, (blocks * rows, columns).
    """
    shape = layout(classes, registers)
    pointer, integers = FLOAT.as_pointer(), INDEX.as_pointer()
    kinds = [INDEX, INDEX, pointer, pointer, integers, integers, pointer, pointer, pointer]
    code = Code("training", kinds, registers.lanes)
    steps, blocks, weights, inputs, classes_of, chosen, rates, scores, slopes = code.code.args
    for argument in code.code.args[2:]:
        argument.add_attribute("noalias")
    step_rows = code.times(blocks, shape.rows)
    with code.loop(steps) as step:
        first = code.mul(step, step_rows)
        batch = _Batch(code, features, shape, inputs, code.at(chosen, first))
        with code.loop(blocks) as block:
            row = code.times(block, shape.rows)
            batch.score(
                row, weights, code.at(scores, code.times(code.sum(first, row), shape.columns))
            )
        with code.loop(step_rows) as row:
            whose = code.sum(first, row)
            example = code.load(code.at(chosen, whose))
            _slope(
                code,
                code.at(scores, code.times(whose, shape.columns)),
                code.at(slopes, code.times(row, shape.columns)),
                code.load(code.at(classes_of, example)),
                code.load(code.at(rates, whose)),
                shape.columns,
            )
        with code.loop(blocks) as block:
            row = code.times(block, shape.rows)
            batch.descend(row, weights, code.at(slopes, code.times(row, shape.columns)))
    return code.compiled(cpu, target)


class _Batch:
    """Writes the two products of a step, block by block."""

    def __init__(
        self, code: Code, features: int, shape: Layout, inputs: Value, chosen: Value
    ) -> None:
        self.code, self.features, self.shape = code, features, shape
        self.inputs, self.chosen = inputs, chosen
        self.places = [
            (row, column)
            for row in range(shape.rows)
            for column in range(0, shape.columns, code.lanes)
        ]

    def _inputs(self, first: Value) -> list[Value]:
        """Where each row's input begins."""
        code = self.code
        examples = [code.load(code.at(self.chosen, first, row)) for row in range(self.shape.rows)]
        return [code.at(self.inputs, code.times(example, self.features)) for example in examples]

    def score(self, first: Value, weights: Value, scores: Value) -> None:
        """Scores = inputs * weights + bias."""
        code, columns = self.code, self.shape.columns
        inputs = self._inputs(first)
        sums = [code.vector(code.at(weights, self.features * columns, c)) for _, c in self.places]
        parts = -(-self.features // _MOST_TERMS)
        with code.loop(parts, sums) as number:
            # Each part is added up for itself: rounding grows with a sum's length.
            begin = code.times(number, _MOST_TERMS)
            part = [code.zeros()] * len(sums)
            with code.loop(
                code.least(_MOST_TERMS, code.sub(INDEX(self.features), begin)), part
            ) as term:
                feature = code.sum(begin, term)
                factors = code.times(feature, columns)
                vectors = {c: code.vector(code.at(weights, factors, c)) for _, c in self.places}
                values = [code.spread(code.load(code.at(place, feature))) for place in inputs]
                for place, (row, column) in enumerate(self.places):
                    part[place] = code.multiply_add(values[row], vectors[column], part[place])
            sums[:] = [code.fadd(sum_, more) for sum_, more in zip(sums, part, strict=True)]
        for (row, column), vector in zip(self.places, sums, strict=True):
            code.put(vector, code.at(scores, row * columns + column))

    def descend(self, first: Value, weights: Value, slopes: Value) -> None:
        """Weights -= inputs * slopes, and the bias with an input of 1."""
        code, columns = self.code, self.shape.columns
        inputs = self._inputs(first)
        steep = [
            code.vector(code.at(slopes, row * columns + column)) for row, column in self.places
        ]
        with code.loop(self.features) as feature:
            factors = code.times(feature, columns)
            values = [code.spread(code.load(code.at(place, feature))) for place in inputs]
            self._subtract(code.at(weights, factors), values, steep)
        one = code.spread(FLOAT(1.0))
        self._subtract(code.at(weights, self.features * columns), [one] * len(inputs), steep)

    def _subtract(self, weights: Value, values: list[Value], steep: list[Value]) -> None:
        code = self.code
        for column in range(0, self.shape.columns, code.lanes):
            sum_ = code.zeros()
            for (row, of), slope in zip(self.places, steep, strict=True):
                if of == column:
                    sum_ = code.multiply_add(values[row], slope, sum_)
            place = code.at(weights, column)
            code.put(code.fsub(code.vector(place), sum_), place)


def _slope(
    code: Code, scores: Value, slopes: Value, class_: Value, rate: Value, columns: int
) -> None:
    """The cross-entropy's gradient of one row's scores, softmax - one-hot, times the row's rate."""
    places = range(0, columns, code.lanes)
    vectors = [code.vector(code.at(scores, place)) for place in places]
    largest = code.largest(vectors)
    exponentials = [code.exponential(code.fsub(vector, largest)) for vector in vectors]
    total = code.total(exponentials)
    for place, exponential in zip(places, exponentials, strict=True):
        hot = code.where_index_is(code.sub(class_, INDEX(place)), code.spread(FLOAT(1.0)))
        slope = code.fsub(code.fdiv(exponential, total), hot)
        code.put(code.fmul(slope, code.spread(rate)), code.at(slopes, place))
