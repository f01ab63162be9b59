"""One step of plain SGD of a dense layer, from the two factors of its gradient.

The gradient itself is never in memory: each weight is read once and written once, and so is its copy in bfloat16, with
which the next step's products are computed. For AVX-512 with products of bfloat16.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from weights.llvm import FLOAT, INDEX, INT, Code, Value

LANES = 16
_UNITS, _VECTORS = 6, 4
"""Units of a block, and vectors of their weights: 24 sums are in registers at once."""


class _Bfloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"


_HALF = _Bfloat()
_PAIRS = ir.VectorType(_HALF, 2 * LANES)
_ROUNDED = ir.VectorType(_HALF, LANES)
_BITS = ir.VectorType(ir.IntType(16), LANES)
_WIDE = ir.VectorType(INT, LANES)
_SUMS = ir.VectorType(FLOAT, LANES)


@functools.cache
def descent(cpu: str = "", target: str = "") -> Callable[..., None]:
    """Compile the kernel. Its arguments: the numbers of pairs of rows, of units and of features, the rate, and

    - the weights (units, features), float32, changed in place;
    - their copy in bfloat16, written;
    - the outputs' gradient, bfloat16, (pairs, units, 2);
    - the inputs, bfloat16, (2 pairs, features).

    Features must be a multiple of `LANES`.
    """
    halves = _HALF.as_pointer()
    kinds = [INDEX, INDEX, INDEX, FLOAT, FLOAT.as_pointer(), halves, INT.as_pointer(), halves]
    code = Code("descent", kinds, LANES)
    for argument in code.code.args[4:]:
        argument.add_attribute("noalias")
    pairs, units, features, rate, *arrays = code.code.args
    dense = _Dense(code, pairs, units, features, code.spread(code.fneg(rate)), *arrays)
    code.blocks(units, _UNITS, dense.descend)
    return code.compiled(cpu, target)


class _Dense(NamedTuple):
    """Writes what is done with blocks of weights."""

    code: Code
    pairs: Value
    units: Value
    features: Value
    step: Value
    weights: Value
    rounded: Value
    slopes: Value
    inputs: Value

    def descend(self, unit: Value, number: int) -> None:
        """All weights of so many units."""
        code = self.code

        def some(vector: Value, count: int) -> None:
            begins = [code.times(code.sum(vector, other), LANES) for other in range(count)]
            sums = [code.zeros()] * (number * count)
            with code.loop(self.pairs, sums) as pair:
                inputs = [self._inputs(pair, begin) for begin in begins]
                slopes = code.at(self.slopes, code.mul(pair, self.units), unit)
                for index in range(number):
                    slope = self._everywhere(code.load(code.at(slopes, index)))
                    for other, values in enumerate(inputs):
                        place = index * count + other
                        sums[place] = self._add_products(sums[place], values, slope)
            for index in range(number):
                row = code.mul(code.sum(unit, index), self.features)
                for other, begin in enumerate(begins):
                    self._change(code.sum(row, begin), sums[index * count + other])

        code.blocks(code.udiv(self.features, INDEX(LANES)), _VECTORS, some)

    def _inputs(self, pair: Value, begin: Value) -> Value:
        """A vector of each of two rows, interleaved."""
        code = self.code
        row = code.mul(code.times(pair, 2), self.features)
        first, second = (
            code.zext(self._bits(code.at(self.inputs, place, begin)), _WIDE)
            for place in (row, code.sum(row, self.features))
        )
        shift = ir.Constant(_WIDE, [16] * LANES)
        return code.bitcast(code.or_(first, code.shl(second, shift)), _PAIRS)

    def _bits(self, place: Value) -> Value:
        loaded = self.code.load(self.code.bitcast(place, _BITS.as_pointer()))
        loaded.align = 2
        return loaded

    def _everywhere(self, pair: Value) -> Value:
        """A vector that holds two slopes everywhere."""
        code, nothing = self.code, ir.Constant(_WIDE, ir.Undefined)
        first = code.insert_element(nothing, pair, INT(0))
        spread = code.shuffle_vector(first, nothing, ir.Constant(_WIDE, [0] * LANES))
        return code.bitcast(spread, _PAIRS)

    def _add_products(self, sums: Value, one: Value, other: Value) -> Value:
        """Each sum with the products of two neighbours added, which are exact in float32."""
        kind = ir.FunctionType(_SUMS, [_SUMS, _PAIRS, _PAIRS])
        dot = self.code.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", kind)
        return self.code.call(dot, [sums, one, other])

    def _change(self, place: Value, sums: Value) -> None:
        """A vector of weights, and its copy."""
        code = self.code
        weights = code.at(self.weights, place)
        changed = code.multiply_add(sums, self.step, code.vector(weights))
        code.put(changed, weights)
        copy = code.bitcast(code.at(self.rounded, place), _ROUNDED.as_pointer())
        code.store(code.fptrunc(changed, _ROUNDED), copy).align = 2
