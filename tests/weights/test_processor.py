"""What processors are known to have."""

import sys

import pytest

from weights.processor import multiplies_bfloat16, registers


@pytest.mark.parametrize(
    ("features", "wanted"),
    [
        ({"avx512f": True, "avx2": True, "fma": True}, (16, 32)),
        ({"avx2": True, "fma": True}, (8, 16)),
        ({"avx2": True}, None),
        ({"neon": True}, None),
    ],
)
def test_registers(features: dict[str, bool], wanted: tuple[int, int] | None) -> None:
    assert registers(features) == wanted


def test_products_of_bfloat16() -> None:
    assert not multiplies_bfloat16({"avx512f": True})
    assert multiplies_bfloat16({"avx512f": True, "avx512bf16": True})


def test_without_llvmlite_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert registers() is None
    assert not multiplies_bfloat16()
