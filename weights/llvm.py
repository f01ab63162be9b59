"""Machine code for the processor at hand, for what torch has no operator: LLVM's assembly, which `Code` writes.

llvmlite brings LLVM along, so that no machine needs a compiler; where it is missing, importing this raises ImportError:
ask `weights.processor` first.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

INDEX, INT, FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
Value = Any

_compiling = threading.Lock()


def index_of(value: Value) -> Value:
    """A Python int as an index; what is one already stays."""
    return ir.Constant(INDEX, value) if isinstance(value, int) else value


class Code(ir.IRBuilder):  # type: ignore[misc]
    """Writes one function, `name`, of indices, floats and pointers; vectors have `lanes` floats."""

    def __init__(self, name: str, arguments: Sequence[Value], lanes: int) -> None:
        self.source = ir.Module(name)
        self.source.triple = llvm.get_default_triple()
        kind = ir.FunctionType(ir.VoidType(), arguments)
        self.code = ir.Function(self.source, kind, name)
        super().__init__(self.code.append_basic_block())
        self.lanes = lanes
        self._vector = ir.VectorType(FLOAT, lanes)
        self._everywhere = ir.Constant(ir.VectorType(INT, lanes), [0] * lanes)
        same = ir.FunctionType(self._vector, [self._vector] * 3)
        self._multiply_add = ir.Function(self.source, same, f"llvm.fmuladd.v{lanes}f32")

    @contextmanager
    def loop(self, stop: Value, values: list[Value] | None = None) -> Iterator[Value]:
        """For an index from 0 to `stop`, and what each turn makes of `values`.

        Inside, that list has the values as they are, and takes what they become; after it, it has the last ones.
        """
        values = [] if values is None else values
        before = self.block
        head, body, end = (self.code.append_basic_block() for _ in range(3))
        self.branch(head)
        self.position_at_end(head)
        index, *now = [self.phi(INDEX), *(self.phi(value.type) for value in values)]
        for phi, value in zip((index, *now), (index_of(0), *values), strict=True):
            phi.add_incoming(value, before)
        self.cbranch(self.icmp_signed("<", index, index_of(stop)), body, end)
        self.position_at_end(body)
        values[:] = now
        yield index
        for phi, value in zip((index, *now), (self.sum(index, 1), *values), strict=True):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.position_at_end(end)
        values[:] = now

    def over(
        self,
        length: int,
        size: int,
        do: Callable[[Value, int], None],
        values: list[Value] | None = None,
    ) -> None:
        """`do` with where each block of indices up to `length` begins, and its size; `values` as in `loop`."""
        whole, rest = divmod(length, size)
        with self.loop(whole, values) as block:
            do(self.times(block, size), size)
        if rest:
            do(INDEX(whole * size), rest)

    def blocks(self, total: Value, size: int, do: Callable[[Value, int], None]) -> None:
        """The same up to a length that the code gets to know: what is left of it comes one by one."""
        whole = self.udiv(total, INDEX(size))
        with self.loop(whole) as block:
            do(self.times(block, size), size)
        done = self.times(whole, size)
        with self.loop(self.sub(total, done)) as one:
            do(self.sum(done, one), 1)

    def at(self, array: Value, *terms: Value) -> Value:
        """A pointer into an array: to the element whose index is the sum of the terms."""
        return self.gep(array, [self.sum(*terms)])

    def sum(self, *terms: Value) -> Value:
        """The sum of indices."""
        total = index_of(terms[0])
        for term in terms[1:]:
            total = self.add(total, index_of(term))
        return total

    def times(self, one: Value, other: int) -> Value:
        """The product of indices."""
        return self.mul(one, index_of(other))

    def least(self, one: Value, other: Value) -> Value:
        """The smaller of two indices."""
        one, other = index_of(one), index_of(other)
        return self.select(self.icmp_signed("<", one, other), one, other)

    def index(self, pointer: Value) -> Value:
        """The 32-bit integer there, as an index."""
        return self.sext(self.load(pointer), INDEX)

    def vector(self, pointer: Value, lanes: int = 0) -> Value:
        """The vector that begins there; if only some `lanes` are there, the others are 0 and not read."""
        place = self.bitcast(pointer, self._vector.as_pointer())
        if lanes in (0, self.lanes):
            loaded = self.load(place)
            loaded.align = 4
            return loaded
        mask, zeros = self._first_lanes(lanes), self.zeros()
        kinds = [place.type, INT, mask.type, self._vector]
        load = self.intrinsic(
            f"llvm.masked.load.v{self.lanes}f32.p0", ir.FunctionType(self._vector, kinds)
        )
        return self.call(load, [place, INT(4), mask, zeros])

    def put(self, vector: Value, pointer: Value, lanes: int = 0) -> None:
        """Store a vector from there on, or the first `lanes` of it."""
        place = self.bitcast(pointer, self._vector.as_pointer())
        if lanes in (0, self.lanes):
            self.store(vector, place).align = 4
            return
        mask = self._first_lanes(lanes)
        kinds = [self._vector, place.type, INT, mask.type]
        store = self.intrinsic(
            f"llvm.masked.store.v{self.lanes}f32.p0", ir.FunctionType(ir.VoidType(), kinds)
        )
        self.call(store, [vector, place, INT(4), mask])

    def increase(self, pointer: Value, vector: Value, lanes: int = 0) -> None:
        """Add a vector, or the first `lanes` of it, to what is there."""
        self.put(self.fadd(self.vector(pointer, lanes), vector), pointer, lanes)

    def _first_lanes(self, lanes: int) -> Value:
        kind = ir.VectorType(ir.IntType(1), self.lanes)
        return ir.Constant(kind, [lane < lanes for lane in range(self.lanes)])

    def floats(self, values: Sequence[float]) -> Value:
        """A vector of these floats."""
        return ir.Constant(self._vector, list(values))

    def zeros(self) -> Value:
        """A vector of zeros."""
        return self.floats([0.0] * self.lanes)

    def first(self, vector: Value) -> Value:
        """A vector's first float."""
        return self.extract_element(vector, INT(0))

    def spread(self, scalar: Value) -> Value:
        """A vector that holds one float everywhere."""
        nothing = ir.Constant(self._vector, ir.Undefined)
        first = self.insert_element(nothing, scalar, ir.Constant(INT, 0))
        return self.shuffle_vector(first, nothing, self._everywhere)

    def multiply_add(self, one: Value, other: Value, addend: Value) -> Value:
        """The product of two vectors and a third added, fused where the processor does that."""
        return self.call(self._multiply_add, [one, other, addend])

    def largest(self, vectors: Sequence[Value]) -> Value:
        """The largest float of all vectors, everywhere."""
        kind = ir.FunctionType(FLOAT, [self._vector])
        reduce = self.intrinsic(f"llvm.vector.reduce.fmax.v{self.lanes}f32", kind)
        found = vectors[0]
        for vector in vectors[1:]:
            found = self.select(self.fcmp_unordered(">", vector, found), vector, found)
        return self.spread(self.call(reduce, [found]))

    def total(self, vectors: Sequence[Value]) -> Value:
        """The sum of all vectors' floats, everywhere."""
        found = vectors[0]
        for vector in vectors[1:]:
            found = self.fadd(found, vector)
        width = self.lanes
        while width > 1:  # halves onto one another
            width //= 2
            order = [(lane + width) % self.lanes for lane in range(self.lanes)]
            turned = ir.Constant(ir.VectorType(INT, self.lanes), order)
            found = self.fadd(found, self.shuffle_vector(found, found, turned))
        return found

    def where_index_is(self, index: Value, vector: Value) -> Value:
        """The vector at one index, and 0 elsewhere."""
        kind = ir.VectorType(INDEX, self.lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.insert_element(nothing, index, INT(0))
        wanted = self.shuffle_vector(first, nothing, self._everywhere)
        own = ir.Constant(kind, list(range(self.lanes)))
        return self.select(self.icmp_signed("==", own, wanted), vector, self.zeros())

    def exponential(self, vector: Value) -> Value:
        """e^x of floats that are not positive, to two units in the last place (Cephes' `expf`); 0 under -87."""
        kind = ir.VectorType(INT, self.lanes)

        def same(value: float) -> Value:
            return self.floats([value] * self.lanes)

        x = self.select(self.fcmp_ordered(">", vector, same(-87.0)), vector, same(-87.0))
        # x = n ln 2 + r, |r| at most ln 2 / 2; n by rounding to the nearest whole number.
        shift = same(12582912.0)
        n = self.fsub(self.multiply_add(x, same(1.44269504), shift), shift)
        r = self.multiply_add(n, same(-0.693359375), x)
        r = self.multiply_add(n, same(2.12194440e-4), r)
        p = same(1.9875691500e-4)
        for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
            p = self.multiply_add(p, r, same(term))
        p = self.fadd(self.multiply_add(p, self.fmul(r, r), r), same(1.0))
        # Times 2^n: n is added to the exponent's bits.
        bits = self.shl(self.fptosi(n, kind), ir.Constant(kind, [23] * self.lanes))
        found = self.bitcast(self.add(self.bitcast(p, kind), bits), self._vector)
        found = self.select(self.fcmp_ordered("<", vector, same(-87.0)), same(0.0), found)
        return self.select(self.fcmp_unordered("uno", vector, vector), vector, found)

    def intrinsic(self, name: str, kind: Value) -> Value:
        """One of LLVM's own functions."""
        known = self.source.globals.get(name)
        return known if known is not None else ir.Function(self.source, kind, name)

    def compiled(self, cpu: str = "", features: str = "") -> Callable[..., None]:
        """The function, for this processor or the one that is named; it runs without Python's lock."""
        with _compiling:
            return self._compiled(cpu, features)

    def _compiled(self, cpu: str, features: str) -> Callable[..., None]:
        self.ret_void()
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=cpu or llvm.get_host_cpu_name(),
            features=features or llvm.get_host_cpu_features().flatten(),
            opt=2,
        )
        module = llvm.parse_assembly(str(self.source))
        module.verify()
        # Without LLVM's passes: they take twice as long as all the rest, and find nothing in such loops.
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        scalars: dict[Value, Any] = {INDEX: ctypes.c_int64, FLOAT: ctypes.c_float}
        kinds = [scalars.get(a.type, ctypes.c_void_p) for a in self.code.args]
        function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(self.code.name))

        def call(*arguments: float, _engine: Any = engine) -> None:  # which owns the code
            function(*arguments)

        return call
