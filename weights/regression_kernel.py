"""Softmax regression by plain SGD, from the first batch to the last.

A step is a few microseconds of arithmetic; to start its operations one by one takes a hundred times as long.
"""

from collections.abc import Callable
from typing import NamedTuple

from weights.llvm import FLOAT, INDEX, Code, Value
from weights.processor import Registers

_MOST_CLASSES = 10
"""Classes of a block, each of which has a sum in a register."""


def training(
    features: int, classes: int, registers: Registers, cpu: str = "", target: str = ""
) -> Callable[..., None]:
    """Compile the kernel. Its arguments: the numbers of batches, of rows in one and of all rows, the learning rate, and

    - the weights (classes, features) and the biases (classes), trained in place;
    - the inputs (examples, features);
    - int64: the classes that they are of;
    - int64: which example each row is, batch by batch: the last one may be short;
    - what came out for each row before its step (3, rows), written: the sum of e^(score - largest score), the
      largest score minus its own class's, and 1 where its class is the first with the largest score;
    - scratch memory for a batch's scores, (rows of one, `columns`).
    """
    pointer, integers = FLOAT.as_pointer(), INDEX.as_pointer()
    data = [pointer, pointer, pointer, integers, integers, pointer, pointer]
    code = Code("training", [INDEX, INDEX, INDEX, FLOAT, *data], registers.lanes)
    steps, size, rows, rate, *arrays = code.code.args
    for argument in arrays:
        argument.add_attribute("noalias")
    weights, biases, inputs, classes_of, chosen, outcomes, scores = arrays
    width = columns(classes, registers)
    with code.loop(steps) as step:
        first = code.mul(step, size)
        count = code.least(size, code.sub(rows, first))
        places = (weights, biases, inputs, code.at(chosen, first), scores)
        batch = _Batch(code, features, classes, width, count, *places)
        # So many rows' sums with a block's classes, their inputs, and a weight are in registers.
        at_once = max(1, (registers.number - 1) // (batch.at_once + 1))
        code.blocks(count, at_once, batch.score)
        share = code.fdiv(rate, code.sitofp(count, FLOAT))
        with code.loop(count) as row:
            whose = code.sum(first, row)
            class_ = code.load(code.at(classes_of, code.load(code.at(chosen, whose))))
            for number, value in enumerate(batch.slope(row, class_, share)):
                code.store(value, code.at(outcomes, whose, code.times(rows, number)))
        code.over(classes, batch.at_once, batch.descend)
        batch.descend_biases()
    return code.compiled(cpu, target)


def columns(classes: int, registers: Registers) -> int:
    """Floats that a row of scores takes: whole vectors."""
    return -(-classes // registers.lanes) * registers.lanes


class _Batch(NamedTuple):
    """Writes what a step does with the `count` rows of its batch. A row of scores takes `width` floats."""

    code: Code
    features: int
    classes: int
    width: int
    count: Value
    weights: Value
    biases: Value
    inputs: Value
    chosen: Value
    scores: Value

    @property
    def at_once(self) -> int:
        """Classes of a block."""
        return -(-self.classes // -(-self.classes // _MOST_CLASSES))

    def _input(self, row: Value) -> Value:
        example = self.code.load(self.code.at(self.chosen, row))
        return self.code.at(self.inputs, self.code.times(example, self.features))

    def _score(self, row: Value, class_: Value) -> Value:
        return self.code.at(self.scores, self.code.times(row, self.width), class_)

    def _weights(self, class_: Value) -> Value:
        return self.code.at(self.weights, self.code.times(class_, self.features))

    def score(self, row: Value, number: int) -> None:
        """So many rows' scores, inputs * weights + bias."""
        code = self.code
        rows = [code.sum(row, other) for other in range(number)]
        inputs = [self._input(each) for each in rows]

        def some(class_: Value, count: int) -> None:
            classes = [code.sum(class_, other) for other in range(count)]
            weights = [self._weights(each) for each in classes]
            sums = [code.zeros()] * (number * count)

            def add(begin: Value, lanes: int) -> None:
                vectors = [code.vector(code.at(place, begin), lanes) for place in inputs]
                for index in range(count):
                    factor = code.vector(code.at(weights[index], begin), lanes)
                    for other, vector in enumerate(vectors):
                        place = index * number + other
                        sums[place] = code.multiply_add(vector, factor, sums[place])

            code.over(self.features, code.lanes, add, sums)
            for index, each in enumerate(classes):
                bias = code.load(code.at(self.biases, each))
                for other in range(number):
                    total = code.first(code.total([sums[index * number + other]]))
                    code.store(code.fadd(total, bias), self._score(rows[other], each))

        code.over(self.classes, self.at_once, some)

    def slope(self, row: Value, class_: Value, share: Value) -> list[Value]:
        """The cross-entropy's gradient of a row's scores, times minus its share, in the scores' place.

        Returns what came out for the row: see `training`.
        """
        code, infinity = self.code, float("inf")
        nowhere = code.floats([-infinity] * code.lanes)
        begins = range(0, self.classes, code.lanes)
        vectors, found = [], []
        for begin in begins:
            lanes = min(code.lanes, self.classes - begin)
            vector = code.vector(self._score(row, INDEX(begin)), lanes)
            vectors.append(
                code.fadd(vector, code.floats([0.0] * lanes + [-infinity] * (code.lanes - lanes)))
            )
        own = code.load(self._score(row, class_))
        largest = code.largest(vectors)
        exponentials = [code.exponential(code.fsub(vector, largest)) for vector in vectors]
        total = code.total(exponentials)
        # The first class with the largest score: of the negatives of their numbers, the largest.
        for begin, vector in zip(begins, vectors, strict=True):
            numbers = code.floats([-float(begin + lane) for lane in range(code.lanes)])
            found.append(code.select(code.fcmp_ordered("==", vector, largest), numbers, nowhere))
        winner = code.fneg(code.first(code.largest(found)))
        right = code.fcmp_ordered("==", winner, code.sitofp(class_, FLOAT))
        for begin, exponential in zip(begins, exponentials, strict=True):
            hot = code.where_index_is(code.sub(class_, INDEX(begin)), code.spread(FLOAT(1.0)))
            slope = code.fsub(hot, code.fdiv(exponential, total))
            code.put(code.fmul(slope, code.spread(share)), self._score(row, INDEX(begin)))
        gap = code.fsub(code.first(largest), own)
        return [code.first(total), gap, code.select(right, FLOAT(1.0), FLOAT(0.0))]

    def descend(self, class_: Value, number: int) -> None:
        """Weights of so many classes += inputs * slopes."""
        code = self.code
        classes = [code.sum(class_, other) for other in range(number)]
        weights = [self._weights(each) for each in classes]

        def add(begin: Value, lanes: int) -> None:
            sums = [code.zeros()] * number
            with code.loop(self.count, sums) as row:
                vector = code.vector(code.at(self._input(row), begin), lanes)
                for index, each in enumerate(classes):
                    slope = code.spread(code.load(self._score(row, each)))
                    sums[index] = code.multiply_add(vector, slope, sums[index])
            for place, sum_ in zip(weights, sums, strict=True):
                code.increase(code.at(place, begin), sum_, lanes)

        code.over(self.features, code.lanes, add)

    def descend_biases(self) -> None:
        """Biases += slopes."""
        code = self.code

        def add(begin: Value, lanes: int) -> None:
            sums = [code.zeros()]
            with code.loop(self.count, sums) as row:
                sums[0] = code.fadd(sums[0], code.vector(self._score(row, begin), lanes))
            code.increase(code.at(self.biases, begin), sums[0], lanes)

        code.over(self.classes, code.lanes, add)
