"""What the builder writes, run on this processor."""

import numpy as np
import pytest

from weights.processor import registers

llvm = pytest.importorskip("weights.llvm", reason="llvmlite is not installed")
if (found := registers()) is None:
    pytest.skip("a processor without AVX2", allow_module_level=True)
LANES = found.lanes


def test_the_exponential_is_within_two_units_in_the_last_place() -> None:
    pointer = llvm.FLOAT.as_pointer()
    code = llvm.Code("exponentials", [llvm.INDEX, pointer, pointer], LANES)
    vectors, inputs, outputs = code.code.args
    with code.loop(vectors) as number:
        place = code.times(number, LANES)
        code.put(code.exponential(code.vector(code.at(inputs, place))), code.at(outputs, place))
    run = code.compiled()
    values = np.linspace(-90, 0, 100_000 * LANES, dtype=np.float32)
    values[:4] = -np.inf, np.nan, -1e30, -87.5
    got = np.empty_like(values)
    run(len(values) // LANES, values.ctypes.data, got.ctypes.data)
    assert np.isnan(got[1])
    assert not got[[0, 2, 3]].any()
    within = values >= -87
    exact = np.exp(values[within].astype(np.float64))
    units = np.abs(got[within] - exact) / np.spacing(exact.astype(np.float32))
    assert units.max() <= 2
    assert not got[values < -87].any()


def test_a_loop_hands_its_values_on() -> None:
    """The sums and the largest of each vector's floats, added up over vectors."""
    pointer = llvm.FLOAT.as_pointer()
    code = llvm.Code("sums", [llvm.INDEX, pointer, pointer], LANES)
    vectors, inputs, outputs = code.code.args
    sums = [code.zeros(), code.zeros()]
    with code.loop(vectors, sums) as number:
        vector = code.vector(code.at(inputs, code.times(number, LANES)))
        found = (code.total([vector]), code.largest([vector]))
        sums[:] = [code.fadd(before, more) for before, more in zip(sums, found, strict=True)]
    for place, vector in enumerate(sums):
        code.put(vector, code.at(outputs, place * LANES))
    values = np.random.default_rng(0).integers(-50, 50, (7, LANES)).astype(np.float32)
    got = np.empty((2, LANES), np.float32)
    code.compiled()(len(values), values.ctypes.data, got.ctypes.data)
    assert (got[0] == values.sum()).all()
    assert (got[1] == values.max(1).sum()).all()
