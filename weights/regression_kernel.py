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
    """Compile the kernel. Its arguments: the numbers of batches, of rows in one and of all rows, the learning rate, and

    - the weights (features + 1, columns), trained in place: the last row is the bias, and -inf where no class is;
    - the inputs (examples, features);
    - int64: the classes that they are of;
    - int64: which example each row is, batch by batch: the last one may be short;
    - what came out for each row before its step (3, rows), written: the sum of e^(score - largest score), the
      largest score minus its own class's, and 1 where its class is the first with the largest score;
    - scratch memory for a batch in whole blocks, (blocks * rows of one, columns).
    """
    shape = layout(classes, registers)
    pointer, integers = FLOAT.as_pointer(), INDEX.as_pointer()
    kinds = [INDEX, INDEX, INDEX, FLOAT, pointer, pointer, integers, integers, pointer, pointer]
    code = Code("training", kinds, registers.lanes)
    steps, size, rows, rate, weights, inputs, classes_of, chosen, outcomes, scores = code.code.args
    for argument in code.code.args[4:]:
        argument.add_attribute("noalias")
    with code.loop(steps) as step:
        first = code.mul(step, size)
        count = code.least(size, code.sub(rows, first))
        blocks = code.udiv(code.sum(count, shape.rows - 1), INDEX(shape.rows))
        batch = _Batch(code, features, shape, inputs, code.at(chosen, first), count)
        with code.loop(blocks) as block:
            row = code.times(block, shape.rows)
            batch.score(row, weights, code.at(scores, code.times(row, shape.columns)))
        share = code.fdiv(rate, code.sitofp(count, FLOAT))
        with code.loop(count) as row:
            whose = code.sum(first, row)
            class_ = code.load(code.at(classes_of, code.load(code.at(chosen, whose))))
            place = code.at(scores, code.times(row, shape.columns))
            for number, value in enumerate(_slope(code, place, class_, share, shape.columns)):
                code.store(value, code.at(outcomes, whose, code.times(rows, number)))
        # Rows that only fill up the last block weigh nothing.
        filling = code.sub(code.times(blocks, shape.rows), count)
        with code.loop(filling) as row:
            place = code.times(code.sum(count, row), shape.columns)
            for column in range(0, shape.columns, code.lanes):
                code.put(code.zeros(), code.at(scores, place, column))
        with code.loop(blocks) as block:
            row = code.times(block, shape.rows)
            batch.descend(row, weights, code.at(scores, code.times(row, shape.columns)))
    return code.compiled(cpu, target)


class _Batch:
    """Writes the two products of a step, block by block."""

    def __init__(
        self,
        code: Code,
        features: int,
        shape: Layout,
        inputs: Value,
        chosen: Value,
        count: Value,
    ) -> None:
        self.code, self.features, self.shape = code, features, shape
        self.inputs, self.chosen = inputs, chosen
        self.last = code.sub(count, INDEX(1))
        self.places = [
            (row, column)
            for row in range(shape.rows)
            for column in range(0, shape.columns, code.lanes)
        ]

    def _inputs(self, first: Value) -> list[Value]:
        """Where each row's input begins; the batch's last row fills up a block: it is finite where the batch is."""
        code = self.code
        rows = [code.least(code.sum(first, row), self.last) for row in range(self.shape.rows)]
        examples = [code.load(code.at(self.chosen, row)) for row in rows]
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


def _slope(code: Code, scores: Value, class_: Value, share: Value, columns: int) -> list[Value]:
    """The cross-entropy's gradient of a row's scores, softmax - one-hot, times its share, in the scores' place.

    Returns what came out for the row: see `training`.
    """
    places = range(0, columns, code.lanes)
    vectors = [code.vector(code.at(scores, place)) for place in places]
    own = code.load(code.at(scores, class_))
    largest = code.largest(vectors)
    exponentials = [code.exponential(code.fsub(vector, largest)) for vector in vectors]
    total = code.total(exponentials)
    # The first class with the largest score: of the negatives of their numbers, the largest.
    nowhere = code.floats([-float("inf")] * code.lanes)
    found = []
    for place, vector in zip(places, vectors, strict=True):
        numbers = code.floats([-float(place + lane) for lane in range(code.lanes)])
        wins = code.fcmp_ordered("==", vector, largest)
        found.append(code.select(wins, numbers, nowhere))
    winner = code.fneg(code.first(code.largest(found)))
    right = code.fcmp_ordered("==", winner, code.sitofp(class_, FLOAT))
    for place, exponential in zip(places, exponentials, strict=True):
        hot = code.where_index_is(code.sub(class_, INDEX(place)), code.spread(FLOAT(1.0)))
        slope = code.fsub(code.fdiv(exponential, total), hot)
        code.put(code.fmul(slope, code.spread(share)), code.at(scores, place))
    gap = code.fsub(code.first(largest), own)
    return [code.first(total), gap, code.select(right, FLOAT(1.0), FLOAT(0.0))]
