"""Floating-point formats: unit roundoff, underflow, largest number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A floating-point format: unit roundoff, absolute error of an operation that underflows, largest finite number."""

    name: str
    unit: float
    tiny: float
    huge: float


# `tiny` allows flush to zero where hardware does it (float32, and formats that share its exponent); float16 keeps its
# subnormals on every device here, so its underflow error is half the smallest of them.
FLOAT64 = Format("float64", 2.0**-53, 2.0**-1022, 1.7976931348623157e308)


FLOAT32 = Format("float32", 2.0**-24, 2.0**-126, 3.4028234663852886e38)


TF32 = Format("tf32", 2.0**-11, 2.0**-126, 3.4028234663852886e38)


BFLOAT16 = Format("bfloat16", 2.0**-8, 2.0**-126, 3.3895313892515355e38)


FLOAT16 = Format("float16", 2.0**-11, 2.0**-25, 65504.0)


FORMATS: Mapping[str, Format] = {f.name: f for f in (FLOAT64, FLOAT32, TF32, BFLOAT16, FLOAT16)}
