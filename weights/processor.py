"""What the processor at hand has that our machine code can use: nothing where llvmlite is missing.

Whoever gets an answer may import `weights.llvm` and the kernels that are written with it.
"""

from typing import NamedTuple


class Registers(NamedTuple):
    """A processor's vector registers: floats in one, and how many there are."""

    lanes: int
    number: int


def registers(features: dict[str, bool] | None = None) -> Registers | None:
    """Those of a processor with these features, or of this one; None for a kind that has not been tried."""
    has = _own_features() if features is None else features
    if has.get("avx512f"):
        return Registers(16, 32)
    return Registers(8, 16) if has.get("avx2") and has.get("fma") else None


def multiplies_bfloat16(features: dict[str, bool] | None = None) -> bool:
    """Whether such a processor, or this one, adds up products of bfloat16 in AVX-512's registers."""
    has = _own_features() if features is None else features
    return bool(has.get("avx512bf16"))


def _own_features() -> dict[str, bool]:
    try:
        # Not before there is work for it: to load LLVM takes a while.
        from llvmlite.binding import get_host_cpu_features
    except ImportError:
        return {}
    return dict(get_host_cpu_features())
