"""Machine code for the processor at hand, for what torch has no operator: LLVM's assembly, which `Code` writes.

llvmlite brings LLVM along, so that no machine needs a compiler; where it is missing, importing this raises ImportError.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

INDEX, INT, FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
Value = Any


class Registers(NamedTuple):
    """A processor's vector registers: floats in one, and how many there are."""

    lanes: int
    number: int


def registers(features: dict[str, bool] | None = None) -> Registers | None:
    """Those of a processor with these features, or of this one; None for a kind that has not been tried."""
    has = llvm.get_host_cpu_features() if features is None else features
    if has.get("avx512f"):
        return Registers(16, 32)
    return Registers(8, 16) if has.get("avx2") and has.get("fma") else None


def index_of(value: Value) -> Value:
    """A Python int as an index; what is one already stays."""
    return ir.Constant(INDEX, value) if isinstance(value, int) else value


class Code(ir.IRBuilder):  # type: ignore[misc]
    """Writes one function, `name`, of indices and pointers; vectors have `lanes` floats."""

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

    def index(self, pointer: Value) -> Value:
        """The 32-bit integer there, as an index."""
        return self.sext(self.load(pointer), INDEX)

    def vector(self, pointer: Value) -> Value:
        """The vector that begins there."""
        loaded = self.load(self.bitcast(pointer, self._vector.as_pointer()))
        loaded.align = 4
        return loaded

    def put(self, vector: Value, pointer: Value) -> None:
        """Store a vector from there on."""
        self.store(vector, self.bitcast(pointer, self._vector.as_pointer())).align = 4

    def spread(self, scalar: Value) -> Value:
        """A vector that holds one float everywhere."""
        nothing = ir.Constant(self._vector, ir.Undefined)
        first = self.insert_element(nothing, scalar, ir.Constant(INT, 0))
        return self.shuffle_vector(first, nothing, self._everywhere)

    def multiply_add(self, one: Value, other: Value, addend: Value) -> Value:
        """The product of two vectors and a third added, fused where the processor does that."""
        return self.call(self._multiply_add, [one, other, addend])

    def compiled(self, cpu: str = "", features: str = "") -> Callable[..., None]:
        """The function, for this processor or the one that is named; it runs without Python's lock."""
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
        kinds = [ctypes.c_int64 if a.type == INDEX else ctypes.c_void_p for a in self.code.args]
        function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(self.code.name))

        def call(*arguments: int, _engine: Any = engine) -> None:  # which owns the code
            function(*arguments)

        return call
